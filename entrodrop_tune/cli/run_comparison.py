"""What ``entrodrop compare`` does when it is given training runs, and the table of groups that a sweep prints too."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
    content = jsonable(comparison.as_dict())
    if as_json:
        print(json.dumps(content))
        return
    print_groups(content, title="Validation NLL in nats/token, mean ± half of the 95% interval over seeds")
    if output is not None:
        for name in ("comparison.json", "comparison.md", "comparison.png"):
            print(output / name)


def print_groups(comparison: dict[str, Any], title: str, retention: Sequence[dict[str, Any]] = ()) -> None:
    """A row a group of runs, and the verdicts; ``retention`` adds a column where there is any."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from entrodrop_tune.analysis.pages import MISSING, interval

    kept = {row["group"]: interval(row) for row in retention}
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("group", overflow="fold")
    columns = ["seeds", "best NLL", "at epoch", "final − best", "useful epochs", *(["retention"] if kept else [])]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for group in comparison["groups"]:
        means = group["means"]
        cells = [interval(means["best_nll"]), interval(means["best_epoch"], 1), interval(means["degradation"])]
        cells.append(("≥ " if group["censored"] else "") + interval(means["effective_epochs"], 1))
        if kept:
            cells.append(kept.get(group["name"], MISSING))
        table.add_row(Text(group["name"]), str(len(group["runs"])), *cells)
    console = Console()
    console.print(table)
    for sentence in comparison["verdicts"]:
        console.print(sentence, markup=False, highlight=False)
