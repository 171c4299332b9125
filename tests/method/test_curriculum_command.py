"""``entrodrop curriculum``."""

import json

import pytest
from typer.testing import CliRunner

from entrodrop_tune.cli.main import app
from entrodrop_tune.errors import UserError
from entrodrop_tune.method import Curriculum


def run(*arguments: str):
    return CliRunner().invoke(app, ["curriculum", *arguments])


def test_json_is_the_curriculum():
    shown = json.loads(run("ramp", "--epochs", "5", "--json").output)
    curriculum = Curriculum.from_config({"preset": "ramp"})
    assert shown["unit"] == "quantile" and shown["per"] == "epoch"
    for i, row in enumerate(shown["rows"]):
        assert (row["threshold"], row["drop_rate"]) == curriculum.at(i / 4)
        assert row["epoch"] == i + 1 and row["expected_dropped"] == row["threshold"] * row["drop_rate"]
    assert len(shown["rows"]) == 5


def test_overrides_merge_into_the_preset():
    shown = json.loads(run("ease", "epochs=3", "drop_rate.start=0.6", "threshold.nats=0.4", "--json").output)
    assert shown["unit"] == "nats"
    assert [row["drop_rate"] for row in shown["rows"]] == pytest.approx([0.6, 0.3, 0.0])
    assert {row["threshold"] for row in shown["rows"]} == {0.4}
    per_step = json.loads(run("ease", "per=step", "--json").output)
    assert len(per_step["rows"]) == 11 and per_step["rows"][-1]["epoch"] == 8


def test_a_config(tmp_path):
    shown = json.loads(run("configs/demo.yaml", "epochs=4", "entrodrop.preset=ease", "--json").output)
    assert shown["rows"][0]["drop_rate"] == 0.8 and len(shown["rows"]) == 4


def test_table_and_plot(tmp_path):
    path = tmp_path / "new" / "ramp.png"
    result = run("ramp", "--plot", str(path))
    assert result.exit_code == 0 and "tokens dropped" in result.output and "40.0%" in result.output
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rampp"], 'Did you mean "ramp"'),
        (["ramp", "drop_rate.end=1.5"], "drop_rate = 1.5"),
        (["ramp", "drop_rate"], "key=value"),
        (["ramp", "drop_rate.start=[1"], 'cannot read override "drop_rate.start=[1"'),
        (["ramp", "[=1"], 'cannot read override "[=1"'),
        (["ramp", "epochs=0"], "epochs = 0"),
        (["ramp", "--plot", "x.txt"], "x.txt"),
        (["missing.yaml"], "does not exist"),
    ],
)
def test_refusals(arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, UserError) and message in str(result.exception)
    assert "\n" not in str(result.exception)
