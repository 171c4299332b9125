"""Twenty SIGKILLs at random moments: what is resumed ends with the bits of what nothing happened to."""

import json
from pathlib import Path

import pytest

from tests.faults.kills import EVERY, Kill, kill_evaluation, kill_training, prepared, steps_lost
from tests.training.runs import journal, weights


def kill_everything(root: Path, seed: int) -> list[Kill]:
    """Eight kills of a full run, six of a LoRA run, six of an evaluation; each is compared with its reference."""
    model, data = prepared(root)
    kills = []
    for case, count in (("full", 8), ("lora", 6)):
        kills += kill_training(case, root / case, model, data, count, seed)
        for killed in root.glob(f"{case}/killed-*"):
            same_run(killed, root / case / "reference")
    kills += kill_evaluation(root / "evaluation", model, 6, seed)
    for killed in root.glob("evaluation/killed-*"):
        same_evaluation(killed, root / "evaluation" / "reference")
    return kills


def same_run(killed: Path, reference: Path) -> None:
    assert journal(killed) == journal(reference)
    for name in ("last", "best"):
        assert (killed / name).readlink() == (reference / name).readlink()
    assert weights(killed / "last") == weights(reference / "last")
    left = [path.name for path in (killed / "checkpoints").iterdir() if not path.name.startswith("step_")]
    assert left == [], "half-written checkpoints stay behind"


def same_evaluation(killed: Path, reference: Path) -> None:
    assert (killed / "items.jsonl").read_bytes() == (reference / "items.jsonl").read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == ["eval.json", "items.jsonl"]
    before, after = (json.loads((folder / "eval.json").read_text()) for folder in (reference, killed))
    for content in (before, after):
        for task in content["tasks"].values():
            del task["seconds"]
        del content["started"], content["seconds"]
    assert before == after


@pytest.mark.slow
def test_twenty_kills_lose_at_most_the_steps_since_a_checkpoint(tmp_path):
    kills = kill_everything(tmp_path, seed=0)
    assert len(kills) == 20
    assert max(steps_lost(kills)) <= EVERY
    assert sum(steps_lost(kills)) > 0, "no kill landed between two checkpoints: the test shows nothing"
