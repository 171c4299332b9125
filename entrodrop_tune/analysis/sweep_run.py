"""Run a sweep's trials one after the other, each recipe in a process and a folder of its own; resumable."""

import multiprocessing
import os
import pkgutil
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from entrodrop_tune import recipes
from entrodrop_tune.analysis.compare_runs import METRICS
from entrodrop_tune.analysis.runs import is_run_folder
from entrodrop_tune.analysis.sweep_plan import Plan, Trial, slug
from entrodrop_tune.errors import UserError, did_you_mean
from entrodrop_tune.evaluation.results import EVAL_FILE, load_results
from entrodrop_tune.evaluation.suites import suite_tasks
from entrodrop_tune.run_record import read_record
from entrodrop_tune.training.engine import FINISHED, STOPPED_EARLY
from entrodrop_tune.training.launch import EXIT_INTERRUPTED, FREE_TO_CHANGE, load_config

DONE = (FINISHED, STOPPED_EARLY)

# Importing torch and what surrounds it takes longer than a small trial: one server imports it once, and every trial is
# a fork of that server, which has computed nothing yet.
_TRIALS = multiprocessing.get_context("forkserver")
_TRIALS.set_forkserver_preload(["entrodrop_tune.training.launch"])


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


def check_trials(plan: Plan, todo: Sequence[Trial], output: Path, config: Path) -> None:
    """Refuse a mistake in the plan or a trial's config, or a folder that holds another run, before the first starts.

    Raises:
        UserError: naming the key, or the folder and what differs.
    """
    if plan.metric not in METRICS:
        raise UserError(f'unknown metric "{plan.metric}".{did_you_mean(plan.metric, METRICS)}')
    if plan.evaluate is not None:
        suite_tasks(plan.evaluate)
    known = [module.name for module in pkgutil.iter_modules(recipes.__path__)]
    for trial in todo:
        if trial.recipe not in known:
            raise UserError(f'there is no recipe "{trial.recipe}".{did_you_mean(trial.recipe, known)}')
        folder = output / "runs" / trial.name
        planned = load_config(config, _overrides(trial, folder)).model_dump(mode="json", by_alias=True)
        if not is_run_folder(folder):
            continue
        found = read_record(folder).get("config") or {}
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
    arguments = ["--config", str(config), *_overrides(trial, folder)]
    started = time.monotonic()
    process = _TRIALS.Process(target=_run_recipe, args=(trial.recipe, arguments, log))
    process.start()
    code, stopped = _wait(process)
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


def _run_recipe(name: str, arguments: list[str], log: Path) -> None:
    """In a trial's process: what ``tune run`` does, with the output appended to ``log``."""
    os.setsid()  # keeps the terminal's Ctrl-C from reaching it beside the SIGTERM it gets from _wait
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = [name, *arguments]
    runpy.run_module(f"entrodrop_tune.recipes.{name}", run_name="__main__")


def _wait(process: BaseProcess) -> tuple[int, bool]:
    """The process's exit code and whether we were interrupted.

    An interrupt is passed on once, as SIGTERM, and the process is given the time it takes to save.
    """
    stopped = False
    while process.exitcode is None:
        try:
            process.join()
        except KeyboardInterrupt:
            if not stopped:
                process.terminate()
            stopped = True
    return process.exitcode, stopped


def _exit_state(folder: Path) -> str | None:
    if not is_run_folder(folder):
        return None
    return read_record(folder).get("exit")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1][:500]


def base_evaluation(output: Path, model: str) -> Path:
    """Where a sweep keeps the evaluation of the untouched ``model``."""
    return output / "base_eval" / slug(model)


def _evaluated(result: Result, suite: str, output: Path) -> Result:
    """Evaluate the untouched model once and the run's best checkpoint, where that is not done yet on this suite."""
    folder = output / "runs" / result.trial.name
    base = read_record(folder)["config"]["model"]["path"]
    log = output / "logs" / f"{folder.name}-eval.log"
    for model, target in ((Path(base), base_evaluation(output, base)), (folder / "best", folder / "eval")):
        if (target / EVAL_FILE).is_file() and load_results(target).suite == suite:
            continue
        command = [sys.executable, "-m", "entrodrop_tune.cli.main", "eval", str(model), "--suite", suite]
        try:
            with log.open("a") as file:
                code = subprocess.call([*command, "--output", str(target)], stdout=file, stderr=subprocess.STDOUT)
        except KeyboardInterrupt:
            return replace(result, state="interrupted", error="interrupted; start the sweep again to go on")
        if code != 0:
            return replace(result, error=f"evaluation of {model} failed, exit code {code}: {_last_words(log)}")
    return result
