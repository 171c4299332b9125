"""A run's text files: ``run.json`` (what ran, on what, how it ended) and the two ``.jsonl`` journals."""

import json
import os
import platform
import resource
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from entrodrop_tune.errors import UserError
from entrodrop_tune.files import write_atomically

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
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop lines past ``step`` (a killed run wrote them, the resumed one writes them again).

        A half-written last line is dropped too.
        """
        if not self.path.exists():
            return
        rows = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if row["step"] <= step:
                rows.append(row)
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))


class RunRecord:
    """``run.json``: written at the start, updated at the end."""

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir / "run.json"
        self.content: dict[str, Any] = {}

    def load(self) -> bool:
        """Read an earlier run's record; False when there is none.

        Raises:
            UserError: the file is not JSON.
        """
        if not self.path.exists():
            return False
        try:
            self.content = json.loads(self.path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{self.path} is damaged ({error}): restore it or start in another output_dir.") from None
        return True

    def update(self, **fields: Any) -> None:
        self.content.update(fields)
        write_atomically(self.path, json.dumps(self.content, indent=2) + "\n")
