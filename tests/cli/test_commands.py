"""The commands as a user types them: output, JSON, exit codes."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from entrodrop_tune.cli.main import app, main
from entrodrop_tune.recipes import full_finetune
from tests.analysis.synthetic import make_run
from tests.training.runs import TINY, command, environment, overrides, tune

runner = CliRunner()


def entrodrop(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "entrodrop_tune.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
    )


def test_every_command_has_help_with_examples():
    listing = runner.invoke(app, ["--help"])
    assert listing.exit_code == 0
    for command_info in app.registered_commands:
        name = command_info.name or command_info.callback.__name__
        assert name in listing.output
        shown = runner.invoke(app, [name, "--help"])
        assert shown.exit_code == 0, shown.output
        assert f"entrodrop {name}" in " ".join(shown.output.split()), f"{name} --help shows no example"


def test_ls_and_cp(tmp_path):
    rows = json.loads(runner.invoke(app, ["ls", "--json"]).output)
    assert all(row["description"] for kind in rows.values() for row in kind)
    copied = runner.invoke(app, ["cp", "demo", str(tmp_path / "mine.yaml")])
    assert copied.exit_code == 0 and (tmp_path / "mine.yaml").read_text().startswith("# LoRA on SmolLM2")
    again = entrodrop("cp", "demo", tmp_path / "mine.yaml")
    assert again.returncode == 2 and "add --force" in again.stderr


def test_cp_suggests_the_nearest_name(tmp_path):
    done = entrodrop("cp", "demmo", tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr.strip() == 'error: there is no config or recipe "demmo", shipped or on disk. Did you mean "demo"?'
    )


def test_check_tells_steps_curriculum_and_what_would_be_dropped(lively_model, tiny_data, tmp_path):
    arguments = overrides(lively_model, tiny_data, tmp_path / "run", "entrodrop.drop_rate=1.0")
    done = entrodrop("check", "--config", "tiny", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["steps"] == {"per_epoch": 6, "total": 12, "sequences_per_step": 2}
    assert plan["data"]["train_samples"] == 12 and plan["data"]["validation_samples"] == 4
    assert [row["drop_rate"] for row in plan["curriculum"]] == [1.0, 1.0]
    assert plan["memory_bytes"]["weights"] == 4 * plan["parameters"]["total"]
    for sample in plan["preview"]:
        # Drop rate 1: exactly the tokens below the threshold go.
        assert all((token["weight"] == 0) == (token["entropy"] < sample["threshold"]) for token in sample["tokens"])
        assert 0 < sum(token["weight"] == 0 for token in sample["tokens"]) < len(sample["tokens"])
    assert not (tmp_path / "run").exists()
    table = entrodrop("check", "--config", "tiny", *arguments)
    assert table.returncode == 0 and "6 an epoch" in table.stdout and "drop rate" in table.stdout


def test_check_previews_where_a_rising_threshold_drops_most(lively_model, tiny_data, tmp_path):
    rising = "entrodrop.threshold={quantile: {shape: linear, start: 0.1, end: 0.9}}"
    arguments = overrides(lively_model, tiny_data, tmp_path / "run", "entrodrop.drop_rate=1.0", rising)
    done = runner.invoke(app, ["check", "--config", "tiny", "--json", *arguments], catch_exceptions=False)
    plan = json.loads(done.stdout)
    assert [row["quantile"] for row in plan["curriculum"]] == [0.1, 0.9]
    assert {sample["epoch"] for sample in plan["preview"]} == {1}


@pytest.mark.parametrize(
    "arguments",
    [
        "compare nowhere nowhere --output {}",
        "report {run} --output {}",
        "eval nowhere --output {}",
        "eval nowhere --output {run} --cache {}",
        "entropy nowhere nowhere --output {}",
        "sweep --config tiny --grid epochs=1,2 --output {}",
        "prepare gsm8k --output {}",
        "cp tiny {}/mine.yaml",
        "curriculum ramp --plot {}/plot.png",
    ],
)
def test_a_file_where_a_folder_is_to_be_written_is_named_before_anything_is_done(tmp_path, run_main, arguments):
    """The models and data are nowhere: what is wrong with the output is said before they are looked for."""
    run, notes = make_run(tmp_path / "run", epochs=1), tmp_path / "notes.txt"
    notes.write_text("mine")
    for place in (notes, notes / "below"):
        code, error = run_main(main, *arguments.format(place, run=run).split())
        assert code == 2 and error.count("\n") == 1
        assert error.startswith("error: ") and f"{place}: {notes} is not a folder" in error
    assert notes.read_text() == "mine"


@pytest.mark.slow
def test_run_is_tune_run_with_short_names(tiny_model, tiny_data, tmp_path):
    arguments = overrides(tiny_model, tiny_data, tmp_path / "run", "max_steps=1")
    done = entrodrop("run", "full_finetune", "--config", "tiny", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["full_finetune"], "--config FILE is required"),
        (["full_finetun", "--config", "tiny"], 'is not a recipe. Did you mean "full_finetune"?'),
        (["full_finetune", "--config", "tinny"], 'no config "tinny", shipped or on disk. Did you mean "tiny"?'),
    ],
)
def test_run_refuses_unknown_names(arguments, message):
    done = entrodrop("run", *arguments)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", 'unknown key "epoch". Did you mean "epochs"?'),
        ("data.train=nowhere.jsonl", "nowhere.jsonl"),
        ("model.path=nowhere", "nowhere"),
        ("adapter.rank=8", '"adapter" is for entrodrop_tune/recipes/lora_finetune'),
    ],
)
def test_recipes_name_the_mistake_in_one_line(tiny_model, tiny_data, tmp_path, override, message, monkeypatch, capsys):
    arguments = ["--config", str(TINY), *overrides(tiny_model, tiny_data, tmp_path / "run", override)]
    monkeypatch.setattr(sys, "argv", ["full_finetune", *arguments])
    with pytest.raises(SystemExit) as caught:
        full_finetune.recipe_main()
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


@pytest.mark.slow
def test_tune_run_passes_the_exit_code_on(tiny_model, tiny_data, tmp_path):
    done = tune("full_finetune", *overrides(tiny_model, tiny_data, tmp_path / "run", "epoch=3"))
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if "Skipping import of cpp" not in line]
    assert len(errors) == 1 and 'unknown key "epoch". Did you mean "epochs"?' in errors[0]


@pytest.mark.slow
def test_the_recipe_without_config_says_so():
    done = subprocess.run(command("full_finetune")[:-2], capture_output=True, text=True, env=environment())
    assert done.returncode == 2 and "--config" in done.stderr
