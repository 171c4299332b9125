"""A run's text files: ``run.json`` (what ran, on what, how it ended) and the two ``.jsonl`` journals."""

import json
import os
import platform
import re
import resource
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from entrodrop_tune.errors import UserError
from entrodrop_tune.files import write_atomically
from entrodrop_tune.run_record import RECORD_FILE, read_record
from entrodrop_tune.training.checkpoint import writing

_STEP = re.compile(rb'\{"step": (\d+),')
PACKAGES = ("entrodrop-tune", "torch", "torchtune", "torchao", "transformers")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device.type,
        "device_name": name,
        "cpu_count": os.cpu_count(),
        "system": platform.system(),
    }


def peak_memory(device: torch.device) -> int:
    """Most bytes this process has held on ``device`` (CPU: its peak resident size)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started this process, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Journal:
    """An append-only ``.jsonl`` file whose lines carry a ``step``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Write one line.

        Raises:
            CheckpointError: the disk is full or will not be written.
        """
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def truncate_after(self, step: int, every_step: bool = False) -> None:
        """Drop lines past ``step`` (a killed run wrote them, the resumed one writes them again).

        A half-written last line is dropped too. Lines up to ``step`` that cannot be read are left out, with a warning.

        Args:
            step: the last one to keep.
            every_step: whether there must be a line for each step from 1 on.
        """
        if not self.path.exists():
            return
        rows, lines = [], self.path.read_bytes().splitlines()
        for number, line in enumerate(lines, start=1):
            row = _parse(line)
            if row is None:
                # Written but not yet whole when the run was killed: then it is of a step past the checkpoint.
                half_written = number == len(lines) and (found := _STEP.match(line)) and int(found[1]) > step
                if not half_written:
                    _warn(f"{self.path} line {number} is damaged and was left out")
            elif row["step"] <= step:
                rows.append(row)
        missing = set(range(1, step + 1)) - {row["step"] for row in rows} if every_step else set()
        if missing:
            others = f" and {len(missing) - 1} others are" if len(missing) > 1 else " is"
            _warn(f"{self.path} is damaged: step {min(missing)}{others} missing")
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


class RunRecord:
    """``run.json``: written at the start, updated at the end."""

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir / RECORD_FILE
        self.content: dict[str, Any] = {}

    def load(self) -> bool:
        """Read an earlier run's record; False when there is none.

        Raises:
            UserError: the file is damaged.
        """
        if not self.path.exists():
            return False
        self.content = read_record(self.path.parent)
        for key in ("config", "global_batch"):
            if not self.content.get(key):
                raise UserError(
                    f'{self.path} is damaged: it has no "{key}". Restore it or start in another output_dir.'
                )
        return True

    def update(self, **fields: Any) -> None:
        self.content.update(fields)
        with writing(self.path):
            write_atomically(self.path, json.dumps(self.content, indent=2) + "\n")
