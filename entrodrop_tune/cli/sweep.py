"""``entrodrop sweep``: many training runs, one table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrodrop_tune.errors import UserError

if TYPE_CHECKING:
    from entrodrop_tune.analysis.sweep_plan import Plan, Trial
    from entrodrop_tune.analysis.sweep_run import Result


def sweep(
    plan: Annotated[
        Path | None, typer.Argument(help="Plan file (see studies/), or none with --config and --grid.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides for every run.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="One of the plan's sizes.")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="Only this domain of the plan; may be repeated.")] = None,
    config: Annotated[str | None, typer.Option(help="Training config, or a short name from `entrodrop ls`.")] = None,
    recipe: Annotated[str, typer.Option(help="Recipe, with --config.")] = "lora_finetune",
    grid: Annotated[list[str] | None, typer.Option(help="KEY=VALUE,VALUE,...; several make all combinations.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, joined by commas.")] = None,
    evaluate: Annotated[str | None, typer.Option(help="Suite to evaluate each best checkpoint on.")] = None,
    output: Annotated[Path, typer.Option(help="The sweep's folder.")] = Path("sweep"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json instead of a table.")] = False,
) -> None:
    """Train once for each combination of settings and seed, one run after the other, and compare the results.

    Started again, it goes on where it stopped; failed runs are kept apart and tried again. Writes sweep.json, sweep.md,
    sweep.png and main_effects.png beside the runs.

    Examples:

        entrodrop sweep --config smollm2/135m_lora --grid entrodrop.select=none,entropy,random --seeds 0,1,2

        entrodrop sweep --config my.yaml --grid entrodrop.drop_rate=0.2,0.5,0.8 --grid optimizer.lr=1e-4,1e-3 epochs=4

        entrodrop sweep studies/curriculum.yaml --size minutes --output runs/curriculum
    """
    import json
    import signal

    from entrodrop_tune.analysis.sweep_plan import trials
    from entrodrop_tune.analysis.sweep_report import write_overview
    from entrodrop_tune.analysis.sweep_run import check_trials
    from entrodrop_tune.cli.catalog import configs, find
    from entrodrop_tune.files import require_folder

    # With --config there is no plan file, so the first positional argument is an override.
    if plan is not None and "=" in str(plan):
        plan, overrides = None, [str(plan), *(overrides or [])]
    chosen = _plan(plan, size, config, recipe, grid or [], seeds, evaluate, overrides or [])
    file = find(chosen.config, configs(), "config").resolve()
    parts = {name: (part, trials(part)) for name, part in chosen.by_domain(domain).items()}
    folders = {name: output / name if name else output for name in parts}
    for name, (part, todo) in parts.items():
        require_folder(folders[name])
        check_trials(part, todo, folders[name], file)
    if dry_run:
        for name, (_, todo) in parts.items():
            for trial in todo:
                print(*([f"{name}:"] if name else []), trial.name, *trial.overrides)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the run in progress saves first
    reports = {}
    for name, (part, todo) in parts.items():
        reports[name] = _run(part, todo, folders[name], file, quiet=as_json)
        if reports[name]["unfinished"]:
            break
    if None not in reports:
        write_overview({str(name): report for name, report in reports.items()}, chosen, output)
    if as_json:
        print(json.dumps(reports.get(None, reports)))
    if any(report[key] for report in reports.values() for key in ("failed", "not_evaluated", "unfinished")):
        raise typer.Exit(1)


def _run(plan: "Plan", todo: "list[Trial]", output: Path, config: Path, quiet: bool) -> dict[str, Any]:
    from entrodrop_tune.analysis.sweep_report import build_sweep_report, write_sweep_report
    from entrodrop_tune.analysis.sweep_run import run_sweep

    results = run_sweep(plan, todo, output, config, _progress(len(todo)))
    report, runs = build_sweep_report(plan, results, output)
    groups = [result.trial.group for result in results if result.state == "done"]
    write_sweep_report(report, plan, runs, output, groups)
    if not quiet:
        _print(report, output)
    return report


def _plan(
    path: Path | None,
    size: str | None,
    config: str | None,
    recipe: str,
    grid: list[str],
    seeds: str | None,
    evaluate: str | None,
    overrides: list[str],
) -> "Plan":
    from entrodrop_tune.analysis.sweep_plan import Plan, parse_grid, parse_overrides, read_plan

    if (path is None) == (config is None):
        raise UserError("give either a plan file or --config with --grid.")
    if path is not None:
        plan = read_plan(path).sized(size)
    elif size is not None:
        raise UserError("--size needs a plan file: sizes are written there.")
    else:
        plan = Plan(title=f"Sweep of {config}", config=str(config), recipe=recipe)
    update: dict[str, Any] = {"grid": {**plan.grid, **parse_grid(grid)}}
    update["overrides"] = {**plan.overrides, **parse_overrides(overrides)}
    if seeds is not None:
        update["seeds"] = _seeds(seeds)
    if evaluate is not None:
        update["evaluate"] = evaluate
    return plan.model_copy(update=update)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f'--seeds "{text}": write whole numbers joined by commas, for example 0,1,2.') from None


def _progress(total: int) -> Any:
    import sys

    from entrodrop_tune.analysis.pages import duration

    def report(number: int, trial: "Trial", results: "list[Result]") -> None:
        if results and results[-1].state == "failed":
            print(f"  failed: {results[-1].error}", file=sys.stderr, flush=True)
        times = [result.seconds for result in results if result.seconds is not None]
        left = f", about {duration(sum(times) / len(times) * (total - number))} left" if times else ""
        print(f"[{number + 1}/{total}] {trial.name}{left}", file=sys.stderr, flush=True)

    return report


def _print(report: dict[str, Any], output: Path) -> None:
    from rich.console import Console

    from entrodrop_tune.cli.run_comparison import print_groups

    console = Console()
    if report["comparison"]:
        print_groups(report["comparison"], report["title"], report["retention"])
    for item in [*report["failed"], *report["not_evaluated"]]:
        console.print(f"failed: {item['name']}: {item['error']}", markup=False, highlight=False, style="red")
    if report["unfinished"]:
        console.print(f"{len(report['unfinished'])} runs to do: start the same command again.", style="yellow")
    console.print(str(output / "sweep.md"), markup=False, highlight=False)
