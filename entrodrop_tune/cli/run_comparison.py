"""What ``entrodrop compare`` does when it is given training runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from entrodrop_tune.analysis.compare_runs import RunComparison


def show_run_comparison(
    paths: Sequence[Path], *, metric: str = "best_nll", baseline: str | None, output: Path | None, as_json: bool
) -> None:
    """Compare training runs, print table and verdicts (or JSON), write files into ``output`` when given."""
    from entrodrop_tune.analysis.compare_output import write_comparison
    from entrodrop_tune.analysis.compare_runs import compare_runs
    from entrodrop_tune.analysis.runs import jsonable, load_runs

    runs = load_runs(paths)
    comparison = compare_runs(runs, metric=metric, baseline=baseline)
    if output is not None:
        write_comparison(comparison, runs, output)
    if as_json:
        print(json.dumps(jsonable(comparison.as_dict())))
        return
    print_comparison(comparison)
    if output is not None:
        for name in ("comparison.json", "comparison.md", "comparison.png"):
            print(output / name)


def print_comparison(comparison: "RunComparison") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from entrodrop_tune.analysis.pages import interval, percent

    table = Table(
        title="validation NLL in nats/token, mean ± half of the 95% interval over seeds", title_justify="left"
    )
    table.add_column("group", overflow="fold")
    for name in ("seeds", "best NLL", "at epoch", "final − best", "useful epochs", "kept"):
        table.add_column(name, justify="right")
    for group in comparison.groups:
        means = {key: {"value": mean.value, "half_width": mean.half_width} for key, mean in group.means.items()}
        table.add_row(
            Text(group.name),
            str(len(group.runs)),
            interval(means["best_nll"]),
            interval(means["best_epoch"], 1),
            interval(means["degradation"]),
            ("≥ " if group.censored else "") + interval(means["effective_epochs"], 1),
            percent(group.means["kept_fraction"].value),
        )
    console = Console()
    console.print(table)
    for sentence in comparison.verdicts:
        console.print(sentence, markup=False, highlight=False)
