"""Imports go one way (the contracts in pyproject.toml), and light imports stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_import_contracts_hold():
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("entrodrop_tune.method", {"torchtune", "transformers", "lm_eval", "pydantic", "omegaconf"}),
        ("entrodrop_tune.cli.main", {"torch", "torchtune", "transformers", "lm_eval", "matplotlib", "scipy"}),
    ],
)
def test_light_imports_stay_light(module, forbidden):
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert forbidden.isdisjoint(done.stdout.split())
