"""The way from data to report, with the network cut off: it works, and nothing even tries to reach anyone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.runs import ADAPTER, TINY

WATCHER = Path(__file__).parent / "watcher"
ENTRODROP = ["-m", "entrodrop_tune.cli.main"]


def unconnected() -> list[str]:
    """A prefix that starts a command in a network namespace of its own, where there is not even a loopback."""
    for prefix in (
        ["unshare", "--user", "--map-root-user", "--net"],
        ["bwrap", "--dev-bind", "/", "/", "--unshare-net"],
    ):
        if shutil.which(prefix[0]) and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    return []


@pytest.fixture
def python(tmp_path):
    """Run Python without a network and without the variables that would tell libraries to stay offline."""
    log = tmp_path / "network.log"
    log.touch()
    quiet = ("HF_", "TRANSFORMERS_", "DO_NOT_TRACK", "WANDB_", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(quiet)}
    environment |= {"PYTHONPATH": str(WATCHER), "NETWORK_LOG": str(log), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*arguments) -> str:
        command = [*unconnected(), sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.log = log
    return run


def test_the_watcher_sees(python):
    python(
        "-c", "import socket, contextlib\nwith contextlib.suppress(OSError): socket.create_connection(('127.0.0.1', 9))"
    )
    assert "socket.getaddrinfo" in python.log.read_text()


@pytest.mark.slow
def test_from_data_to_report_nobody_is_called(python, tiny_model, tmp_path):
    python(*ENTRODROP, "prepare", "gsm8k", "--output", tmp_path / "data")
    for name, rows in (("train", 8), ("validation", 6)):
        path = tmp_path / "data" / f"{name}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))
    settings = [
        *(f"model.path={tiny_model}", f"data.train={tmp_path}/data/train.jsonl", "data.max_length=500"),
        *(f"data.validation={tmp_path}/data/validation.jsonl", f"output_dir={tmp_path}/run", "epochs=1", *ADAPTER),
        *("data.too_long=truncate", "data.bad_rows=skip"),
    ]
    python(*ENTRODROP, "check", "--config", TINY, *settings)
    python(*ENTRODROP, "run", "lora_finetune", "--config", TINY, *settings)
    options = ["--suite", "entrodrop_piqa,entrodrop_ifeval", "--limit", "2", "--device", "cpu"]
    for model, name in ((tiny_model, "base"), (tmp_path / "run" / "best", "tuned")):
        python(*ENTRODROP, "eval", model, *options, "--output", tmp_path / name)
    evaluations = ["--base", tmp_path / "base", "--tuned", tmp_path / "tuned"]
    python(*ENTRODROP, "entropy", tiny_model, tmp_path / "data", "--samples", "2", "--output", tmp_path / "entropy")
    python(*ENTRODROP, "report", tmp_path / "run", *evaluations, "--output", tmp_path / "report")
    assert json.loads((tmp_path / "report" / "report.json").read_text())["evaluation"]["scores"]
    assert python.log.read_text() == ""
