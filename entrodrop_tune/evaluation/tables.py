"""Tables for the terminal."""

from rich.console import Console
from rich.table import Table

from entrodrop_tune.evaluation.results import EvalResults


def print_results(results: EvalResults) -> None:
    """Every metric of every task with its interval; the task's primary metric in bold."""
    table = Table(title=f"{results.model.path} · suite {results.suite} · {results.seconds:.0f} s")
    for column in ("group", "task", "metric", "value", "95 % interval", "n", "chance"):
        table.add_column(column, justify="right" if column in ("value", "n", "chance") else "left")
    for name, task in sorted(results.tasks.items(), key=lambda pair: (pair[1].group, pair[0])):
        for metric, summary in task.metrics.items():
            arrow = "↑" if summary.higher_is_better else "↓"
            table.add_row(
                task.group,
                name.removeprefix("entrodrop_"),
                f"{metric} {arrow}",
                f"{summary.value:.3f}",
                f"{summary.ci_low:.3f} – {summary.ci_high:.3f}",
                str(summary.n),
                "" if summary.chance is None else f"{summary.chance:.2f}",
                style="bold" if metric == task.primary else "",
            )
    console = Console()
    console.print(table)
    for name, reason in results.skipped.items():
        console.print(f"skipped {name}: {reason}", style="yellow")
