"""docs/results.md says what the study's runs say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_runs():
    done = subprocess.run(
        [sys.executable, "studies/effect/table.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_run_is_finished_and_complete(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "effect"))
    import stored

    runs = [stored.load(path) for path in sorted((ROOT / "studies" / "effect" / "results").glob("*/*.json"))]
    assert len(runs) > 100
    for one in runs:
        epochs = one.run.config["epochs"]
        assert one.run.exit == "finished" and one.seed == one.run.config["seed"]
        assert one.run.validation["epoch"].tolist() == list(range(epochs + 1))
