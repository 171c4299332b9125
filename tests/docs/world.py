"""The folder in which a page's commands run: what the pages name is there, tiny."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.docs.markdown import ROOT
from tests.tiny import tiny_dataset, tiny_model_dir

PROGRAMS = ("entrodrop", "tune", "python")
LINKED = ("benchmarks", "configs", "entrodrop_tune", "eval_tasks", "examples", "studies")
DATASETS = ("gsm8k", "mbpp", "pubmedqa", "replay")


class Shell:
    """Runs shell text with the project's programs warm; see ``warm_server.py``."""

    def __init__(self, home: Path) -> None:
        self._address = home / "warm.socket"
        self._bin = home / "bin"
        self._bin.mkdir(parents=True)
        client = Path(__file__).with_name("warm_client.py").read_text(encoding="utf-8")
        for name in PROGRAMS:
            (self._bin / name).write_text(f"#!{sys.executable} -ES\n{client}", encoding="utf-8")
            (self._bin / name).chmod(0o755)
        self._environment = {
            **os.environ,
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "WARM_SERVER": str(self._address),
            "COLUMNS": "100",
        }
        server = [sys.executable, str(Path(__file__).with_name("warm_server.py")), str(self._address)]
        self._server = subprocess.Popen(server, env={**self._environment, "PYTHONPATH": str(ROOT)})
        deadline = time.monotonic() + 240
        while not self._address.exists():
            assert self._server.poll() is None and time.monotonic() < deadline, "the warm server did not start"
            time.sleep(0.1)

    def close(self) -> None:
        self._server.kill()
        self._server.wait()

    def run(self, text: str, folder: Path, timeout: float = 300) -> str:
        """Run ``text`` with bash, stopping at the first line that fails; returns what it printed.

        Raises:
            AssertionError: naming the line and showing the output.
        """
        script = f"set -euo pipefail\ntrap 'echo \"FAILED: $BASH_COMMAND\"' ERR\n{text}"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env=self._environment,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout


def make_world(folder: Path) -> Path:
    """A user's folder: a model, prepared data, rows and a config of one's own, and the repository's folders."""
    tiny_model_dir(folder / "models" / "smollm2", initializer_range=0.4)
    for name in DATASETS:
        _dataset(folder / "data" / name, name)
    tiny_dataset(folder / "mine.jsonl", 12, offset=200)
    tiny_dataset(folder / "general.jsonl", 4, offset=300)
    shutil.copytree(folder / "models" / "smollm2", folder / "demo" / "model")
    shutil.copytree(folder / "data" / "gsm8k", folder / "demo" / "data")
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    return folder


def _dataset(folder: Path, name: str) -> None:
    """As ``entrodrop prepare NAME`` leaves it, so that the command finds it there."""
    folder.mkdir(parents=True)
    record = {"name": name, "origin": "bundled sample", "licence": "none", "source": "tests", "note": "", "title": name}
    (folder / "source.json").write_text(json.dumps(record))
    tiny_dataset(folder / "train.jsonl", 12)
    if name != "replay":
        tiny_dataset(folder / "validation.jsonl", 4, offset=100)
