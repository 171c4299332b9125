"""``entrodrop report``: one page on one training run or several."""

from pathlib import Path
from typing import Annotated

import typer

from entrodrop_tune.errors import UserError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of training runs (their output_dir).")],
    base: Annotated[
        Path | None, typer.Option(help="Evaluation folder of the untouched model, from `entrodrop eval`.")
    ] = None,
    tuned: Annotated[Path | None, typer.Option(help="Evaluation folder of the fine-tuned model.")] = None,
    entropy: Annotated[
        Path | None, typer.Option(help="Folder of `entrodrop entropy`: adds where the gradient comes from.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write into.  [default: RUN/report]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a summary.")] = False,
) -> None:
    """Write report.html, report.md, report.json and curves.png about a training run, or several.

    The page needs no network and no script; it shows what training did, what evaluation says before and after, and
    warns where a known failure sign shows.

    **Examples**

    `entrodrop report runs/gsm8k`

    `entrodrop report runs/gsm8k --base evals/base --tuned evals/tuned --output report`

    `entrodrop report runs/lora runs/full --output lora-vs-full`
    """
    import json

    from rich.console import Console
    from rich.markup import escape

    from entrodrop_tune.analysis.entropy_record import read_profile
    from entrodrop_tune.analysis.report import write_report
    from entrodrop_tune.analysis.runs import load_runs
    from entrodrop_tune.evaluation.results import load_results
    from entrodrop_tune.files import require_folder

    if (base is None) != (tuned is None):
        given, missing = ("--base", "--tuned") if base else ("--tuned", "--base")
        raise UserError(f"{given} needs {missing} too: a comparison takes an evaluation before and one after.")
    loaded = load_runs(runs)
    if output is None and len(loaded) > 1:
        raise UserError("several runs need --output, the folder to write the report into.")
    folder = output or loaded[0].path / "report"
    require_folder(folder)
    result = write_report(
        loaded,
        folder,
        base=load_results(base) if base else None,
        tuned=load_results(tuned) if tuned else None,
        profile=read_profile(entropy) if entropy else None,
    )
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    for sentence in result["verdict"]:
        console.print(sentence, markup=False, highlight=False)
    for item in result["warnings"]:
        style = "red" if item["severity"] == "problem" else "yellow"
        where = item["detail"] if len(loaded) == 1 else f"In {', '.join(run['name'] for run in item['runs'])}."
        line = escape(f"{item['severity']}: {item['title']}. {where} {item['advice']}")
        console.print(f"[{style}]{line}[/{style}]", highlight=False)
    for name in ("report.html", "report.md", "report.json", "curves.png"):
        console.print(str(folder / name), markup=False, highlight=False)
