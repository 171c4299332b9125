"""``entrodrop compare``: evaluations before and after, or training runs, whichever the paths are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from entrodrop_tune.evaluation.comparison import Comparison

EXAMPLES = """
Examples:

    entrodrop compare runs/base-eval runs/tuned-eval

    entrodrop compare runs/base-eval runs/lora-eval runs/full-eval --output runs/tradeoff

    entrodrop compare runs/plain-1 runs/plain-2 runs/entrodrop-1 runs/entrodrop-2 --baseline plain-1
"""


def compare(
    paths: Annotated[list[Path], typer.Argument(help="Evaluations (the base first), or training runs.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for comparison.json, .md, .html and the trade-off plot.")
    ] = None,
    domain: Annotated[str, typer.Option(help="Evaluations: the group that was trained for.")] = "math",
    every_metric: Annotated[bool, typer.Option(help="Evaluations: show all metrics, not one a task.")] = False,
    metric: Annotated[str, typer.Option(help="Runs: what decides between them.")] = "best_nll",
    baseline: Annotated[
        str | None, typer.Option(help="Runs: the group the others are compared with, by its name or a run of it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare evaluations item by item (paired intervals, tests, retention), or training runs over their seeds.

    PATHS are folders with eval.json (or that file), the first being the base; or run folders with run.json.
    """
    from entrodrop_tune.errors import UserError
    from entrodrop_tune.files import require_folder

    if output is not None:
        require_folder(output)
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise UserError("give evaluations or training runs, not both: " + ", ".join(map(str, paths)))
    if kinds == {"run"}:
        from entrodrop_tune.cli.run_comparison import show_run_comparison

        show_run_comparison(paths, metric=metric, baseline=baseline, output=output, as_json=as_json)
        return
    if len(paths) < 2:
        raise UserError("one evaluation is nothing to compare: give the base's, then one or more tuned ones")
    from entrodrop_tune.evaluation.comparison import compare_evaluations
    from entrodrop_tune.evaluation.results import load_results
    from entrodrop_tune.evaluation.tables import print_comparison, print_costs

    base, *others = map(load_results, paths)
    comparisons = [compare_evaluations(base, other) for other in others]
    if output is not None:
        _write(comparisons, output, domain)
    if as_json:
        print(_json(comparisons))
        return
    for comparison in comparisons:
        print_comparison(comparison, every_metric)
    print_costs(comparisons, domain)
    if output is not None:
        print(f"written to {output}")


def _kind(path: Path) -> str:
    from entrodrop_tune.errors import UserError

    if path.is_file() or (path / "eval.json").exists():
        return "evaluation"
    if (path / "run.json").exists():
        return "run"
    raise UserError(f"{path} holds neither eval.json (from `entrodrop eval`) nor run.json (from a training run)")


def _json(comparisons: "list[Comparison]") -> str:
    return json.dumps([comparison.to_dict() for comparison in comparisons], indent=2, allow_nan=False)


def _write(comparisons: "list[Comparison]", output: Path, domain: str) -> None:
    from entrodrop_tune.evaluation import render
    from entrodrop_tune.files import write_atomically

    sections = [render.comparison_markdown(comparison, every_metric=True) for comparison in comparisons]
    texts = {
        "comparison.json": _json(comparisons) + "\n",
        "comparison.md": "\n".join([*sections, render.markdown_table(*render.cost_table(comparisons, domain)), ""]),
        "comparison.html": render.comparison_html(comparisons, domain),
    }
    picture = render.figure_bytes(render.tradeoff_figure(comparisons, domain), "png")
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(output / name, text)
    (output / "tradeoff.png").write_bytes(picture)
