"""A killed run that is resumed ends with the bits of one that was never interrupted."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import time

import pytest

from entrodrop_tune.errors import UserError
from entrodrop_tune.training.checkpoint import CheckpointError, CheckpointStore
from entrodrop_tune.training.launch import EXIT_INTERRUPTED, load_config, run_training
from tests.processes import PROCESSES
from tests.training.runs import ADAPTER, TINY, command, environment, journal, lines, overrides, tune, weights

SETTINGS = ["epochs=3", "checkpoint.every_n_steps=4", "entrodrop.drop_rate=0.7", "optimizer.lr=0.01"]
CASES = {
    "full": ("full_finetune", ["entrodrop.site=loss", "model.hidden_dropout=0.1"]),
    "lora": ("lora_finetune", [*ADAPTER, "adapter.dropout=0.2", "entrodrop.site=both", "dtype=bf16-mixed"]),
}


@pytest.fixture
def settings(lively_model, tiny_data, tmp_path):
    def build(name: str, *more: str) -> list[str]:
        return overrides(lively_model, tiny_data, tmp_path / name, *SETTINGS, *more)

    return build


def steps_done(run) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_at(recipe: str, arguments: list[str], run, step: int, delay: float) -> None:
    """Start (or resume) a run in a process of its own and SIGKILL it ``delay`` seconds after its ``step``-th step."""
    process = PROCESSES.Process(target=run_training, args=(recipe, load_config(TINY, [*arguments, "resume=true"])))
    process.start()
    while steps_done(run) < step and process.is_alive():
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_five_sigkills_change_nothing(case, settings, tmp_path):
    recipe, more = CASES[case]
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    assert run_training(recipe, load_config(TINY, settings("reference", *more))) == 0
    total = steps_done(reference)
    moments = random.Random(0)
    # One kill in each fifth of the run, so that the first, the middle and the last epoch are hit; the delay lets some
    # land in a validation or in the middle of a checkpoint being written.
    for fifth in range(5):
        step = fifth * total // 5 + moments.randint(1, total // 5)
        killed_at(recipe, settings("killed", *more), killed, step, delay=moments.random() * 0.05)
    assert run_training(recipe, load_config(TINY, settings("killed", *more, "resume=true"))) == 0
    assert journal(killed) == journal(reference)
    assert weights(killed / "last") == weights(reference / "last")
    assert (killed / "best").readlink() == (reference / "best").readlink()


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_its_own_code(settings, tmp_path):
    # Enough steps that the signal arrives long before the end.
    more = ["epochs=200", "checkpoint.keep_last=1", "max_steps=600"]
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("full_finetune", *settings("run", *more)), env=environment(), stdout=subprocess.PIPE, text=True
    )
    while steps_done(run) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED == 75
    assert "resume=true" in output
    step = lines(run / "metrics.jsonl")[-1]["step"]
    assert (run / "last").readlink().name == f"step_{step}", "the step in flight was finished and saved"
    assert step < 600


def test_a_run_interrupted_by_exception_goes_on_from_its_last_checkpoint(settings, tmp_path, monkeypatch):
    recipe, more = CASES["full"]
    assert run_training(recipe, load_config(TINY, settings("reference", *more))) == 0
    from entrodrop_tune.training import engine

    real_step, calls = engine.optimizer_step, []

    def failing_step(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 8:
            raise MemoryError("boom")
        return real_step(*arguments, **keywords)

    monkeypatch.setattr(engine, "optimizer_step", failing_step)
    with pytest.raises(MemoryError):
        run_training(recipe, load_config(TINY, settings("other", *more)))
    monkeypatch.undo()
    assert run_training(recipe, load_config(TINY, settings("other", *more, "resume=true"))) == 0
    assert journal(tmp_path / "other") == journal(tmp_path / "reference")
    assert weights(tmp_path / "other" / "last") == weights(tmp_path / "reference" / "last")


def run_on_a_filling_disk(recipe: str, arguments: list[str], results) -> None:
    """Files may not grow past a limit once the first checkpoint is there."""
    real_save = CheckpointStore.save

    def save(store, step, write):
        if store.steps():
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        return real_save(store, step, write)

    CheckpointStore.save = save
    try:
        run_training(recipe, load_config(TINY, arguments))
    except CheckpointError as error:
        results.put(str(error))


@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_leaves_the_earlier_checkpoint_and_says_so(case, settings, tmp_path):
    recipe, more = CASES[case]
    # An adapter is small: train a larger one, so that it too meets the limit.
    more = [*more, "adapter.rank=64"] if case == "lora" else more
    assert run_training(recipe, load_config(TINY, settings("reference", *more))) == 0
    results = PROCESSES.SimpleQueue()
    process = PROCESSES.Process(target=run_on_a_filling_disk, args=(recipe, settings("full", *more), results))
    process.start()
    process.join()
    message = results.get()
    assert re.search(r"step_\d+ was not saved: .*File too large.*newest: .*step_4.*resume=true", message), message
    run = tmp_path / "full"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_4"]
    assert json.loads((run / "run.json").read_text())["exit"] == "failed"
    assert run_training(recipe, load_config(TINY, settings("full", *more, "resume=true"))) == 0
    assert journal(run) == journal(tmp_path / "reference")
    assert weights(run / "last") == weights(tmp_path / "reference" / "last")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(settings, tmp_path, capsys):
    recipe, more = CASES["full"]
    assert run_training(recipe, load_config(TINY, settings("reference", *more))) == 0
    run = tmp_path / "damaged"
    assert run_training(recipe, load_config(TINY, settings("damaged", *more, "max_steps=9"))) == 0
    optimizer = run / "last" / "resume" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1] + b"\xff")
    assert run_training(recipe, load_config(TINY, settings("damaged", *more, "resume=true"))) == 0
    assert "optimizer.pt does not match its hash" in capsys.readouterr().err
    assert journal(run) == journal(tmp_path / "reference")
    assert weights(run / "last") == weights(tmp_path / "reference" / "last")


def test_a_second_run_in_the_same_folder_is_refused(settings, tmp_path):
    recipe, more = CASES["full"]
    config = load_config(TINY, settings("run", *more, "max_steps=1"))
    assert run_training(recipe, config) == 0
    with pytest.raises(UserError, match="already holds a run: add resume=true"):
        run_training(recipe, config)


def test_resuming_with_other_settings_is_refused_by_name(settings):
    recipe, more = CASES["full"]
    assert run_training(recipe, load_config(TINY, settings("run", *more, "max_steps=1"))) == 0
    with pytest.raises(UserError, match=r'other settings: "seed" was 0, is now 3'):
        run_training(recipe, load_config(TINY, settings("run", *more, "seed=3", "resume=true")))
    with pytest.raises(UserError, match=r"global batch of 2 rows, this launch has 3"):
        run_training(recipe, load_config(TINY, settings("run", *more, "batch_size=3", "resume=true")))


def test_a_finished_run_is_left_alone(settings, tmp_path, capsys):
    recipe, more = CASES["full"]
    assert run_training(recipe, load_config(TINY, settings("run", *more))) == 0
    before = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    assert run_training(recipe, load_config(TINY, settings("run", *more, "resume=true"))) == 0
    assert "finished run; nothing to do" in capsys.readouterr().out
    assert before == {path: os.stat(path).st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}


@pytest.mark.slow
def test_resume_onto_another_number_of_processes(settings, tmp_path):
    """Two processes, then one with twice the accumulation: the same masks and, to rounding, the same losses."""
    calm = ["optimizer.lr=0.001", "optimizer.eps=0.001"]  # see test_distributed.py
    done = tune("full_finetune", *settings("run", *calm, "max_steps=5"), processes=2)
    assert done.returncode == 0, done.stderr
    one = [*calm, "gradient_accumulation_steps=2", "resume=true"]
    assert run_training("full_finetune", load_config(TINY, settings("run", *one))) == 0
    assert run_training("full_finetune", load_config(TINY, settings("alone", *one))) == 0
    resumed, alone = (lines(tmp_path / name / "metrics.jsonl") for name in ("run", "alone"))
    assert [row["kept_fraction"] for row in resumed] == [row["kept_fraction"] for row in alone]
    assert [row["loss"] for row in resumed] == pytest.approx([row["loss"] for row in alone], rel=1e-4)
