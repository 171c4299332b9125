"""The way from data to report, with the network cut off: it works, and nothing even tries to reach anyone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_model_dir
from tests.training.runs import ADAPTER

WATCHER = Path(__file__).parent / "watcher"
# One process for all commands: torch is imported once.
WAY = """
import contextlib, json, sys
from entrodrop_tune.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["entrodrop", *arguments]
    try:
        main()
    except SystemExit as exit:
        assert not exit.code, (arguments, exit.code)
"""


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

    def run(*arguments: str) -> None:
        command = [*unconnected(), sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]

    run.log = log
    return run


def test_the_watcher_sees(python):
    python("-c", "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: pass")
    assert "socket.getaddrinfo" in python.log.read_text()


@pytest.mark.slow
def test_from_data_to_report_nobody_is_called(python, tmp_path):
    model = tiny_model_dir(tmp_path / "model", max_position_embeddings=4096)
    data, run, base, tuned, entropy, report = (
        str(tmp_path / name) for name in ("data", "run", "base", "tuned", "entropy", "report")
    )
    settings = [
        *(f"model.path={model}", f"data.train={data}/train.jsonl", f"data.validation={data}/validation.jsonl"),
        *(f"output_dir={run}", "epochs=1", "max_steps=2", "data.max_length=1024", "data.too_long=skip", *ADAPTER),
    ]
    evaluate = ["--suite", "entrodrop_piqa,entrodrop_ifeval", "--limit", "1", "--device", "cpu", "--output"]
    commands = [
        ["prepare", "gsm8k", "--output", data],
        ["check", "--config", "tiny", *settings],
        ["run", "lora_finetune", "--config", "tiny", *settings],
        ["eval", str(model), *evaluate, base],
        ["eval", f"{run}/last", *evaluate, tuned],
        ["entropy", str(model), data, "--samples", "2", "--gradient-samples", "1", "--output", entropy],
        ["report", run, "--base", base, "--tuned", tuned, "--entropy", entropy, "--output", report],
    ]
    python("-c", WAY, json.dumps(commands))
    assert json.loads((tmp_path / "report" / "report.json").read_text())["evaluation"]["scores"]
    assert python.log.read_text() == ""
