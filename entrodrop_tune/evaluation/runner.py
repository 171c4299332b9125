"""Evaluate a model on a suite: every task from the cache or from lm-eval, then one ``EvalResults``."""

import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from entrodrop_tune.errors import UserError
from entrodrop_tune.evaluation.cache import TaskCache
from entrodrop_tune.evaluation.harness import Harness, PreparedTask, Settings, package_versions, resolve_settings
from entrodrop_tune.evaluation.models import ModelSource, chat_template_hash, count_parameters
from entrodrop_tune.evaluation.program_check import require_working_sandbox
from entrodrop_tune.evaluation.results import EvalResults, Item, ModelRecord, TaskSummary
from entrodrop_tune.evaluation.suites import SuiteTask
from entrodrop_tune.evaluation.summary import NonFiniteScore

Progress = Callable[[str, int, int], None]


def evaluate(
    source: ModelSource,
    suite: str,
    tasks: tuple[SuiteTask, ...],
    settings: Settings,
    cache: TaskCache | None,
    progress: Progress = lambda message, done, total: None,
) -> EvalResults | None:
    """Run ``tasks`` and collect what ``eval.json`` holds.

    Args:
        source: the model, from ``resolve_model``.
        suite: the suite's name, for the record.
        tasks: what to run, from ``suite_tasks``.
        settings: seed, dtype, batch size and the rest.
        cache: finished tasks are taken from it and put there; ``None`` computes everything.
        progress: called before each task and at the end with a message, tasks done and tasks in all.

    Returns:
        The results, or ``None`` on all but the first process of a multi-process launch.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    settings = resolve_settings(settings)
    harness = Harness(source, settings)
    prepared = [(harness.prepare(task.name), task.limit) for task in tasks]
    skipped, summaries, items = {}, {}, []
    for done, (task, limit) in enumerate(prepared):
        if task.executes_code and (reason := _no_execution(settings)):
            skipped[task.name] = reason
            continue
        progress(task.name, done, len(prepared))
        result = _run_task(harness, task, limit, cache)
        if result is None:
            continue
        summaries[task.name] = result[0]
        items += result[1]
    progress("done", len(prepared), len(prepared))
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    return EvalResults(
        schema_=1,
        model=_model_record(source),
        suite=suite,
        settings={
            **dataclasses.asdict(settings),
            "chat_template_hash": chat_template_hash(source),
            "limits": {task.name: task.limit for task in tasks},
        },
        versions={"python": platform.python_version(), **package_versions()},
        machine=machine(),
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - clock, 2),
        skipped=skipped,
        tasks=summaries,
        items=items,
    )


def _no_execution(settings: Settings) -> str | None:
    """Why generated programs cannot run, if so."""
    if not settings.allow_code_execution:
        return "runs generated programs: give --allow-code-execution"
    try:
        require_working_sandbox()
    except UserError as error:
        return str(error)
    return None


def _run_task(
    harness: Harness, task: PreparedTask, limit: int | None, cache: TaskCache | None
) -> tuple[TaskSummary, list[Item]] | None:
    key = _cache_key(harness, task, limit)
    if cache and (stored := cache.load(key)):
        return stored.summary, stored.items
    try:
        result = harness.run(task, limit, cache.requests_path(key) if cache else None)
    except NonFiniteScore:
        if cache:
            cache.drop_requests(key)
        raise
    if result and cache:
        cache.save(key, *result)
        cache.drop_requests(key)
    return result


def _cache_key(harness: Harness, task: PreparedTask, limit: int | None) -> dict[str, Any]:
    settings = dataclasses.asdict(harness.settings)
    return {
        "model": harness.source.hash,
        "task": task.name,
        "version": str(task.metadata["version"]),
        "data": task.data_hash(limit),
        "limit": limit,
        "chat_template": task.chat_template,
        **{name: settings[name] for name in ("seed", "dtype", "batch_size", "device", "backend", "model_args")},
        "packages": package_versions(),
    }


def _model_record(source: ModelSource) -> ModelRecord:
    return ModelRecord(
        path=str(source.path),
        base=str(source.base),
        adapter=str(source.adapter) if source.adapter else None,
        hash=source.hash,
        parameters=count_parameters(source),
    )


def machine() -> dict[str, Any]:
    """What the scores were computed on: platform, processor count, threads, accelerator."""
    import torch

    return {
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
