"""Finished tasks on disk, one file each, so that an evaluation can be resumed and a base model is scored once.

A file's name is a hash of everything a score depends on: model content, task and version, limit, seed, dtype, batch
size, chat template, data, and the versions of lm-eval and transformers. A file that cannot be read is recomputed.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from entrodrop_tune.evaluation.results import Item, TaskSummary
from entrodrop_tune.files import write_atomically


class CachedTask(BaseModel):
    """A task's summary and items as the cache stores them, with the key they were stored under."""

    key: dict[str, Any]
    summary: TaskSummary
    items: list[Item]


def default_cache_folder() -> Path:
    """``$XDG_CACHE_HOME/entrodrop-tune/evaluation`` (``~/.cache`` by default)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "entrodrop-tune" / "evaluation"


class TaskCache:
    """A folder of finished tasks, ``MODEL_HASH/TASK-KEY.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: dict[str, Any]) -> Path:
        """Where the task with this key is stored; ``key`` must hold ``model`` (a hash) and ``task`` (a name)."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / key["model"][:16] / f"{key['task']}-{digest[:16]}.json"

    def load(self, key: dict[str, Any]) -> CachedTask | None:
        """The stored task, or ``None`` when there is none or its file is damaged."""
        try:
            return CachedTask.model_validate_json(self.path(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            return None

    def save(self, key: dict[str, Any], summary: TaskSummary, items: list[Item]) -> None:
        """Store a finished task."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, CachedTask(key=key, summary=summary, items=items).model_dump_json())

    def requests_path(self, key: dict[str, Any]) -> Path:
        """Where lm-eval keeps the answers to single requests while the task runs (it adds ``_rank0.db``).

        A database there that cannot be read is deleted, with a warning.
        """
        path = self.path(key).with_suffix(".requests")
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in path.parent.glob(f"{path.name}*.db"):
            if not _is_database(file):
                print(f"warning: {file} is damaged: its answers are computed again", file=sys.stderr)
                file.unlink()
        return path

    def drop_requests(self, key: dict[str, Any]) -> None:
        """Delete the single-request answers of a task that is finished."""
        path = self.requests_path(key)
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()


def _is_database(file: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(file)) as database:
            return database.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except sqlite3.DatabaseError:
        return False
