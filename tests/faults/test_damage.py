"""Files that a bad disk or a slip of the hand has changed: each is noticed, named, and does not change a result."""

import json
import os
import shutil
import signal
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from entrodrop_tune.analysis.model_source import load_subject
from entrodrop_tune.cli.main import main
from entrodrop_tune.errors import UserError
from entrodrop_tune.recipes import full_finetune, lora_finetune
from entrodrop_tune.training import journal as journals
from entrodrop_tune.training.launch import load_config, run_training
from tests.faults.kills import PROCESSES
from tests.training.runs import ADAPTER, TINY, journal, overrides, weights

MORE = ["entrodrop.site=both", "entrodrop.drop_rate=0.7", "optimizer.lr=0.01", "validation.every_n_steps=4"]
RECIPES = {
    "full": (full_finetune.recipe_main, []),
    "lora": (lora_finetune.recipe_main, ADAPTER),
}


@pytest.fixture(scope="module")
def trained(lively_model, tiny_data, tmp_path_factory):
    """``full`` and ``lora`` runs of 12 steps, and the same stopped after 8, with checkpoints at 6 (an epoch) and 8."""
    root = tmp_path_factory.mktemp("trained")
    for case, (_, adapter) in RECIPES.items():
        for name, more in ((f"{case}-whole", []), (f"{case}-part", ["max_steps=8"])):
            settings = [*overrides(lively_model, tiny_data, root / name, *MORE, *adapter), "checkpoint.every_n_steps=4"]
            assert run_training(case, load_config(TINY, [*settings, *more])) == 0
    return root


@pytest.fixture
def part(trained, tmp_path, lively_model, tiny_data):
    """A function: a fresh copy of a run that stopped, and the arguments that resume it."""

    def copy(case):
        run = shutil.copytree(trained / f"{case}-part", tmp_path / "run", symlinks=True)
        arguments = [*overrides(lively_model, tiny_data, run, *MORE, *RECIPES[case][1]), "checkpoint.every_n_steps=4"]
        return run, ["--config", TINY, *arguments, "resume=true"]

    return copy


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("case", "name", "harm"),
    [
        ("full", "model.safetensors", truncated),
        ("full", "config.json", flipped),
        ("full", "tokenizer.json", Path.unlink),
        ("full", "resume/optimizer.pt", truncated),
        ("full", "resume/state.safetensors", flipped),  # entropy cache, quantile estimate, validation halves
        ("full", "resume/state.json", Path.unlink),
        ("lora", "adapter_model.safetensors", truncated),
        ("lora", "adapter_config.json", flipped),
        ("lora", "resume/trained.safetensors", flipped),
    ],
)
def test_a_damaged_checkpoint_file_is_named_and_the_one_before_is_used(case, name, harm, part, run_main, trained):
    run, arguments = part(case)
    harm(run / "checkpoints" / "step_8" / name)
    code, error = run_main(RECIPES[case][0], *arguments)
    assert code == 0
    assert "step_8 is damaged" in error and name.rpartition("/")[2] in error and "falling back" in error
    assert json.loads((run / "run.json").read_text())["resumed_from"] == 6
    same(run, trained / f"{case}-whole")


def same(run: Path, reference: Path) -> None:
    assert journal(run) == journal(reference)
    assert weights(run / "last") == weights(reference / "last")


@pytest.mark.parametrize("name", ["metrics.jsonl", "validation.jsonl"])
@pytest.mark.parametrize("harm", [truncated, flipped], ids=["truncated", "flipped"])
def test_a_damaged_journal_never_hides(name, harm, part, run_main, trained):
    """Lines that are lost cannot come back; the run goes on, says what is lost, and ends with the same weights."""
    run, arguments = part("full")
    harm(run / name)
    code, error = run_main(full_finetune.recipe_main, *arguments)
    assert code == 0 and f"{run / name}" in error and "damaged" in error
    assert weights(run / "last") == weights(trained / "full-whole" / "last")
    for line in (run / name).read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": 3}', "{}", "\xff"])
def test_a_damaged_run_record_is_refused(content, part, run_main):
    run, arguments = part("full")
    before = sorted(run.rglob("*"))
    (run / "run.json").write_bytes(content.encode("latin-1"))
    code, error = run_main(full_finetune.recipe_main, *arguments)
    assert code == 2 and str(run / "run.json") in error and error.count("\n") == 1
    assert sorted(run.rglob("*")) == before, "a refused run leaves everything where it was"


def test_all_checkpoints_damaged_means_from_the_start(part, run_main, trained):
    run, arguments = part("full")
    for folder in (run / "checkpoints").iterdir():
        truncated(folder / "model.safetensors")
    code, error = run_main(full_finetune.recipe_main, *arguments)
    assert code == 0 and "step_8 is damaged" in error and "step_6 is damaged" in error
    same(run, trained / "full-whole")


@pytest.mark.parametrize("harm", [truncated, Path.unlink], ids=["truncated", "missing"])
def test_a_damaged_adapter_is_refused_by_name(harm, trained, tmp_path, run_main):
    adapter = shutil.copytree((trained / "lora-part" / "last").resolve(), tmp_path / "adapter")
    harm(adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        load_subject(adapter)
    options = [
        "--suite",
        "entrodrop_piqa",
        "--limit",
        "1",
        "--device",
        "cpu",
        "--no-cache",
        "--output",
        tmp_path / "out",
    ]
    code, error = run_main(main, "eval", adapter, *options)
    assert code == 2 and str(adapter) in error and not (tmp_path / "out").exists()


def test_a_damaged_answer_cache_of_an_evaluation_is_made_anew(lively_model, tmp_path, run_main):
    """lm-eval keeps single answers in a database while a task runs; a killed evaluation takes them from there."""
    options = ["--suite", "entrodrop_piqa", "--limit", "2", "--device", "cpu", "--cache", tmp_path / "cache"]
    assert run_main(main, "eval", lively_model, *options, "--output", tmp_path / "first")[0] == 0
    (stored,) = (tmp_path / "cache").glob("*/*.json")
    stored.unlink()
    stored.with_suffix(".requests_rank0.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 500)
    code, error = run_main(main, "eval", lively_model, *options, "--output", tmp_path / "second")
    assert code == 0 and "requests_rank0.db" in error
    assert (tmp_path / "second" / "items.jsonl").read_bytes() == (tmp_path / "first" / "items.jsonl").read_bytes()


def test_the_clock_does_not_decide(part, run_main, trained, monkeypatch):
    """Time runs backwards during the run, and the newest checkpoint has the oldest date."""
    run, arguments = part("full")
    for age, step in ((0, 6), (10**8, 8)):
        for path in [(folder := run / "checkpoints" / f"step_{step}"), *folder.rglob("*")]:
            os.utime(path, (time.time() - age, time.time() - age))
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    start = datetime.fromisoformat("2031-01-01T00:00:00+00:00")
    monkeypatch.setattr(journals, "now", lambda: (start - timedelta(seconds=10**9 - next(clock))).isoformat())
    code, error = run_main(full_finetune.recipe_main, *arguments)
    assert code == 0 and "damaged" not in error
    assert json.loads((run / "run.json").read_text())["resumed_from"] == 8
    same(run, trained / "full-whole")


def test_memory_that_runs_out_while_loading_is_said_in_one_line(part, run_main, monkeypatch):
    _, arguments = part("full")

    def load(*_arguments, **_keywords):
        raise MemoryError

    monkeypatch.setattr("entrodrop_tune.training.build.load_data", load)
    code, error = run_main(full_finetune.recipe_main, *arguments)
    assert code == 1 and error.startswith("error: out of memory") and "data.max_length" in error
    assert error.count("\n") == 1
    monkeypatch.undo()
    assert run_main(full_finetune.recipe_main, *arguments)[0] == 0


def run_as_nobody(arguments: list[str], errors: Path) -> None:
    """Start a recipe as a user who is not root, with standard error in a file."""
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    if os.geteuid() == 0:
        os.setuid(65534)
    sys.argv = ["program", *arguments]
    full_finetune.recipe_main()


@pytest.mark.slow
def test_a_read_only_output_folder_is_named(tmp_path):
    locked, errors = tmp_path / "locked", tmp_path / "errors"
    locked.mkdir(mode=0o555)
    errors.touch(mode=0o666)
    arguments = overrides(Path("unused"), Path("unused"), locked / "run")
    process = PROCESSES.Process(target=run_as_nobody, args=(["--config", str(TINY), *arguments], errors))
    process.start()
    process.join()
    assert process.exitcode == 2
    said = [line for line in errors.read_text().splitlines() if line.startswith("error:")]
    assert said == [f"error: output_dir {locked / 'run'} cannot be written: Permission denied."]


def hold(arguments: list[str], started) -> None:
    import torch

    from entrodrop_tune.training import engine

    def stuck(*_arguments, **_keywords):
        started.set()
        time.sleep(600)

    engine.optimizer_step = stuck
    torch.set_num_threads(1)
    run_training("full_finetune", load_config(TINY, arguments))


@pytest.mark.slow
def test_a_second_run_on_the_folder_is_refused_and_the_lock_dies_with_its_run(
    tmp_path, tiny_model, tiny_data, run_main
):
    arguments = overrides(tiny_model, tiny_data, tmp_path / "run")
    started = PROCESSES.Event()
    first = PROCESSES.Process(target=hold, args=(arguments, started))
    first.start()
    assert started.wait(60)
    code, error = run_main(full_finetune.recipe_main, "--config", TINY, *arguments, "resume=true")
    assert code == 2 and f"{tmp_path / 'run'} is in use by another run" in error
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert run_main(full_finetune.recipe_main, "--config", TINY, *arguments, "resume=true")[0] == 0
