"""From a command line to an exit code: what both recipes share.

Exit codes: 0 finished (or stopped early), 1 training failed, 2 the user can fix it, 75 interrupted and saved
(SIGTERM or SIGINT; run the same command with ``resume=true``).
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torchtune.training.metric_logging import MetricLoggerInterface

from entrodrop_tune.config import load_mapping, validate
from entrodrop_tune.errors import UserError
from entrodrop_tune.training.build import Run, build
from entrodrop_tune.training.checkpoint import CheckpointError, CheckpointStore
from entrodrop_tune.training.components import build_component
from entrodrop_tune.training.config import RunConfig
from entrodrop_tune.training.distributed import World, broadcast_object, world
from entrodrop_tune.training.engine import FINISHED, INTERRUPTED, STOPPED_EARLY, Engine, TrainingFailure
from entrodrop_tune.training.journal import RunRecord, machine, now, versions
from entrodrop_tune.versions import require_supported_versions

EXIT_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED = 1, 2, 75

# What may differ between a run and its continuation without changing what is computed. Microbatch size, accumulation
# and the number of processes may change together, as long as their product does not.
FREE_TO_CHANGE = {
    "output_dir",
    "resume",
    "device",
    "metric_logger",
    "max_steps",
    "checkpoint",
    "batch_size",
    "gradient_accumulation_steps",
    "optimizer_in_bwd",
}


def load_config(path: Path | str, overrides: list[str]) -> RunConfig:
    """Read, override and check a training config.

    Raises:
        UserError: naming the key, its value and the nearest valid key.
    """
    return validate(RunConfig, load_mapping(path, overrides), source=str(path))


def launch(recipe: str, check: Callable[[RunConfig], None]) -> int:
    """Parse ``sys.argv`` (``--config FILE key=value ...``), train, and return the exit code.

    Args:
        recipe: its name, recorded in ``run.json``.
        check: raises a ``UserError`` when the config is for another recipe.
    """
    parser = argparse.ArgumentParser(prog=f"tune run entrodrop_tune/recipes/{recipe}")
    parser.add_argument("--config", required=True, help="YAML file of training settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a setting, for example epochs=3")
    arguments = parser.parse_args()
    try:
        require_supported_versions()
        config = load_config(arguments.config, arguments.overrides)
        check(config)
        return run_training(recipe, config)
    except UserError as error:
        return _report(error, EXIT_USER_ERROR)
    except (TrainingFailure, CheckpointError) as error:
        return _report(error, EXIT_FAILED)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        hint = (
            "halve batch_size and double gradient_accumulation_steps, set enable_activation_checkpointing=true,"
            " or lower data.max_length"
        )
        reason = (str(error) or "the system gave no more").splitlines()[0]
        return _report(f"out of memory ({reason}): {hint}.", EXIT_FAILED)


def _is_out_of_memory(error: Exception) -> bool:
    """Accelerators have a type of their own for it, torch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def run_training(recipe: str, config: RunConfig) -> int:
    """Train under ``config`` in this process; returns the exit code."""
    with world(config.device) as here, _lock(config.output_dir, here):
        record = RunRecord(config.output_dir)
        store = CheckpointStore(config.output_dir)
        resume_step = broadcast_object(_resume_step(config, record, store, here) if here.is_main else None, here)
        if isinstance(resume_step, UserError):
            raise resume_step
        if resume_step == "done":
            print(f"{config.output_dir} holds a finished run; nothing to do.")
            return 0
        full = config.adapter is None
        run = build(
            config, here, weights_from=str(store.path(resume_step)) if resume_step is not None and full else None
        )
        _refuse_other_data(config, broadcast_object(record.content.get("data"), here), run)
        engine = Engine(run, store, record, _metric_logger(config, here))
        engine.go_on_from(resume_step)
        if here.is_main:
            print(*run.data.report.lines(), sep="\n")
            record.update(**_opening(recipe, config, run, here, resumed_from=resume_step))
        return _train(engine, record, here)


def _metric_logger(config: RunConfig, here: World) -> MetricLoggerInterface | None:
    if config.metric_logger is None or not here.is_main:
        return None
    return build_component("metric_logger", config.metric_logger, MetricLoggerInterface)


def _train(engine: Engine, record: RunRecord, here: World) -> int:
    exit_state = "failed"
    try:
        exit_state = engine.train()
    finally:
        if here.is_main:
            record.update(ended=now(), exit=exit_state, summary=engine.summary())
    if here.is_main:
        print(_closing_line(engine, exit_state))
    return EXIT_INTERRUPTED if exit_state == INTERRUPTED else 0


def _closing_line(engine: Engine, exit_state: str) -> str:
    summary, folder = engine.summary(), engine.store.output_dir
    line = f"{exit_state.replace('_', ' ')}: {summary['steps']} steps, {summary['tokens']} target tokens"
    if summary["best_step"] is not None:
        line += (
            f"; best {summary['metric']} {summary['best_value']:.4f} at step {summary['best_step']} ({folder / 'best'})"
        )
    if summary["skipped_steps"]:
        line += f"; {summary['skipped_steps']} steps without an update"
    if exit_state == INTERRUPTED:
        line += "; run the same command with resume=true to go on"
    return line


def _resume_step(
    config: RunConfig, record: RunRecord, store: CheckpointStore, here: World
) -> int | str | UserError | None:
    """The step to go on from, ``"done"``, None for a fresh start, or why neither is possible."""
    try:
        if not record.load():
            return None
        if not config.resume:
            raise UserError(
                f"output_dir {config.output_dir} already holds a run: add resume=true to continue it,"
                " or choose another output_dir."
            )
        _refuse_other_settings(config, record, here)
        asked_for_more = record.content["config"].get("max_steps") != config.max_steps
        if record.content.get("exit") in (FINISHED, STOPPED_EARLY) and not asked_for_more:
            return "done"
        return store.newest_good(warn=lambda message: print(f"warning: {message}", file=sys.stderr))
    except UserError as error:
        return error


def _refuse_other_settings(config: RunConfig, record: RunRecord, here: World) -> None:
    then, today = record.content.get("config", {}), config.model_dump(mode="json", by_alias=True)
    changed = [key for key in today if key not in FREE_TO_CHANGE and then.get(key) != today[key]]
    if changed:
        details = "; ".join(f'"{key}" was {then.get(key)!r}, is now {today[key]!r}' for key in changed)
        raise UserError(
            f"cannot resume {config.output_dir} with other settings: {details}. Restore them, or start anew."
        )
    batch = config.global_batch(here.size)
    if batch != record.content["global_batch"]:
        raise UserError(
            f"cannot resume {config.output_dir}: it ran with a global batch of {record.content['global_batch']} rows,"
            f" this launch has {batch} (batch_size * gradient_accumulation_steps * processes)."
        )


def _refuse_other_data(config: RunConfig, then: dict[str, Any] | None, run: Run) -> None:
    """Settings name files, and files can change under their names, as can the tokenizer that reads them."""
    today = run.data.report.to_dict()
    for kind in ("train", "validation", "replay"):
        for before, after in zip((then or {}).get(kind, []), today[kind], strict=False):
            if before["sha256"] != after["sha256"]:
                raise UserError(
                    f"cannot resume {config.output_dir}: the content of {after['path']} has changed since the run"
                    " began. Restore it, or start anew."
                )
    for key in ("train_tokens", "train_target_tokens", "validation_target_tokens"):
        if then is not None and then.get(key, today[key]) != today[key]:
            raise UserError(
                f"cannot resume {config.output_dir}: the same data had {key} = {then[key]}, it now has {today[key]}."
                f" Restore the tokenizer in {config.model.path}, or start anew."
            )


def _opening(recipe: str, config: RunConfig, run: Run, here: World, resumed_from: int | None) -> dict[str, Any]:
    return {
        "schema": 1,
        "recipe": recipe,
        "config": config.model_dump(mode="json", by_alias=True),
        "versions": versions(),
        "machine": machine(here.device),
        "world_size": here.size,
        "global_batch": run.schedule.global_batch,
        "data": run.data.report.to_dict(),
        "parameters": run.parameters(),
        "steps_per_epoch": run.schedule.epoch_ends[0],
        "total_steps": run.total_steps,
        "resumed_from": resumed_from,
        "started": now(),
        "ended": None,
        "exit": "running",
    }


@contextmanager
def _lock(output_dir: Path, here: World) -> Iterator[None]:
    """Held by rank 0 for the length of a run, so that two runs never share a folder."""
    if not here.is_main:
        yield
        return
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output_dir / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"output_dir {output_dir} is in use by another run: choose another output_dir.") from None
    except OSError as error:
        raise UserError(f"output_dir {output_dir} cannot be written: {error.strerror}.") from None
    try:
        yield
    finally:
        lock.release()


def _report(error: BaseException | str, code: int) -> int:
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr)
    return code
