"""Tables for the terminal."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from entrodrop_tune.evaluation.comparison import Comparison
from entrodrop_tune.evaluation.render import cost_table, group_sentence, retention_sentence, row_cells
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
    console = _console()
    console.print(table)
    for name, reason in results.skipped.items():
        console.print(f"skipped {name}: {reason}", style="yellow")


def print_comparison(comparison: Comparison, every_metric: bool = False) -> None:
    """Primary metrics (or all) of a comparison, its group means, retention index and warnings."""
    table = Table(title=f"{comparison.tuned} against {comparison.base}", title_justify="left")
    for column in ("task", "metric", "n", "base", "tuned", "delta, 95 % interval", "p (Holm)", "verdict"):
        table.add_column(column, justify="left" if column in ("task", "metric", "verdict") else "right")
    for row in comparison.rows if every_metric else comparison.primary_rows():
        _, task, metric, n, base, tuned, delta, interval, p, _, verdict = row_cells(row)
        style = {"better": "green", "worse": "red"}.get(row.verdict, "")
        table.add_row(task, metric, n, base, tuned, f"{delta} ({interval})", p, verdict, style=style)
    console = _console()
    console.print(table)
    for group in comparison.groups:
        console.print(group_sentence(group), highlight=False)
    console.print(retention_sentence(comparison), highlight=False)
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


def print_costs(comparisons: Sequence[Comparison], domain: str = "math") -> None:
    """Training cost against what it bought, a row a tuned model; nothing where no run folder is known."""
    if all(comparison.cost is None for comparison in comparisons):
        return
    columns, rows = cost_table(comparisons, domain)
    table = Table(title="What training cost and what it bought", title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "method") else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _console() -> Console:
    """The terminal's width, or room for every column where output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 132)
