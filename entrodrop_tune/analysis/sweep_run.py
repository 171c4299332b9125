"""Run a sweep's trials one after the other, each by ``tune run`` in a process and a folder of its own; resumable."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from entrodrop_tune.analysis.runs import is_run_folder
from entrodrop_tune.analysis.sweep_plan import Plan, Trial
from entrodrop_tune.errors import UserError
from entrodrop_tune.training.launch import FREE_TO_CHANGE, load_config

DONE = ("finished", "stopped_early")
EXIT_INTERRUPTED = 75


@dataclass(frozen=True)
class Result:
    """How a trial ended. ``seconds`` is None where an earlier call had finished it."""

    trial: Trial
    state: Literal["done", "failed", "interrupted", "not started"]
    folder: str | None
    seconds: float | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_trials(todo: Sequence[Trial], output: Path, config: Path) -> None:
    """Refuse a mistake in any trial's config, or a folder that holds another run, before the first trial starts.

    Raises:
        UserError: naming the key, or the folder and what differs.
    """
    for trial in todo:
        folder = output / "runs" / trial.name
        planned = load_config(config, _overrides(trial, folder)).model_dump(mode="json", by_alias=True)
        if not is_run_folder(folder):
            continue
        found = json.loads((folder / "run.json").read_text()).get("config", {})
        changed = [key for key in planned if key not in FREE_TO_CHANGE and planned[key] != found.get(key)]
        if changed:
            raise UserError(
                f'{folder} holds a run with other settings ("{changed[0]}" was {found.get(changed[0])!r}, would be '
                f"{planned[changed[0]]!r}): give another --output, or delete it."
            )


def _overrides(trial: Trial, folder: Path) -> list[str]:
    return [f"output_dir={folder}", "resume=true", "checkpoint.keep_last=1", *trial.overrides]


def run_sweep(
    plan: Plan, todo: Sequence[Trial], output: Path, config: Path, report: Callable[[int, Trial, list[Result]], None]
) -> list[Result]:
    """Run what is not done yet; a failed trial does not stop the others, an interrupted one does.

    A trial's folder is ``output/runs/NAME`` with its log beside it in ``output/logs``; a failed trial's folder is moved
    to ``output/failed``, and it is tried again when the sweep is started again.

    Args:
        plan: gives the suite to evaluate on, if any.
        todo: the trials, in order.
        output: the sweep's folder.
        config: the training config every trial starts from.
        report: called before each trial with its number from 0, the trial, and the results so far.
    """
    for name in ("runs", "logs", "failed"):
        (output / name).mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for number, trial in enumerate(todo):
        report(number, trial, results)
        results.append(_run(trial, output, config))
        if plan.evaluate and results[-1].state == "done":
            results[-1] = _evaluated(results[-1], plan.evaluate, output)
        if results[-1].state == "interrupted":
            return [*results, *(Result(rest, "not started", None) for rest in todo[number + 1 :])]
    return results


def _run(trial: Trial, output: Path, config: Path) -> Result:
    folder, log = output / "runs" / trial.name, output / "logs" / f"{trial.name}.log"
    if _exit_state(folder) in DONE:
        return Result(trial, "done", f"runs/{trial.name}")
    command = [
        *(sys.executable, "-m", "torchtune._cli.tune", "run", f"entrodrop_tune/recipes/{trial.recipe}"),
        *("--config", str(config), *_overrides(trial, folder)),
    ]
    started = time.monotonic()
    code, stopped = _call(command, log)
    seconds = time.monotonic() - started
    if code == 0 and not stopped:
        return Result(trial, "done", f"runs/{trial.name}", seconds)
    if stopped or code == EXIT_INTERRUPTED:
        return Result(
            trial, "interrupted", f"runs/{trial.name}", seconds, "interrupted; start the sweep again to go on"
        )
    if folder.exists():
        shutil.rmtree(output / "failed" / trial.name, ignore_errors=True)
        folder.rename(output / "failed" / trial.name)
    return Result(trial, "failed", None, seconds, f"exit code {code}: {_last_words(log)}")


def _call(command: Sequence[str], log: Path) -> tuple[int, bool]:
    """Run ``command`` with its output appended to ``log``; returns its exit code and whether we were interrupted.

    An interrupt is passed on once, as SIGTERM, and the process is given the time it takes to save.
    """
    with log.open("a") as file:
        # A session of its own keeps the terminal's Ctrl-C from reaching it twice.
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(), False
        except KeyboardInterrupt:
            process.terminate()
            return process.wait(), True


def _exit_state(folder: Path) -> str | None:
    if not is_run_folder(folder):
        return None
    return json.loads((folder / "run.json").read_text()).get("exit")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1][:500]


def _evaluated(result: Result, suite: str, output: Path) -> Result:
    """Evaluate the untouched model once and the run's best checkpoint, where that is not done yet."""
    folder = output / "runs" / result.trial.name
    base = json.loads((folder / "run.json").read_text())["config"]["model"]["path"]
    log = output / "logs" / f"{folder.name}-eval.log"
    for model, target in ((Path(base), output / "base_eval"), (folder / "best", folder / "eval")):
        if (target / "eval.json").is_file():
            continue
        command = [sys.executable, "-m", "entrodrop_tune.cli.main", "eval", str(model), "--suite", suite]
        code, stopped = _call([*command, "--output", str(target)], log)
        if stopped:
            return replace(result, state="interrupted", error="interrupted; start the sweep again to go on")
        if code != 0:
            return replace(result, error=f"evaluation of {model} failed, exit code {code}: {_last_words(log)}")
    return result
