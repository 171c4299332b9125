"""The page on reliability names tests that exist and figures that were measured."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 40
    for file, name in named:
        functions = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(node, "name")}
        assert name in functions, f"{file} has no {name}"


def test_every_row_has_a_proof():
    rows = [
        line for line in PAGE.splitlines() if line.startswith("| ") and not re.match(r"\| (Promise|Input|---)", line)
    ]
    assert rows and all("`tests/" in row for row in rows)


def test_the_figures_of_the_kills_are_the_measured_ones():
    measured = json.loads((ROOT / "benchmarks" / "results" / "sigkill.json").read_text())
    evaluations = sum(kill["what"] == "evaluation" for kill in measured["each"])
    kills, writing = measured["kills"], measured["while_writing_a_checkpoint"]
    for said in (
        f"{kills} kills, {writing} of them while a checkpoint was being written, {evaluations} during an evaluation;",
        f"; {kills} survived; at most {measured['most_steps_lost']} steps were done again,",
        f"done again, {measured['steps_lost']} in all",
        f"checkpoints every {measured['steps_between_checkpoints']} steps",
    ):
        assert said in PAGE
