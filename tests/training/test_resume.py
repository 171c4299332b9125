"""A killed run that is resumed ends with the bits of one that was never interrupted."""

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from entrodrop_tune.errors import UserError
from entrodrop_tune.recipes import full_finetune
from entrodrop_tune.training import engine
from entrodrop_tune.training.checkpoint import CheckpointError, CheckpointStore
from entrodrop_tune.training.journal import Journal, RunRecord
from entrodrop_tune.training.launch import EXIT_INTERRUPTED, load_config, run_training
from tests.processes import PROCESSES
from tests.training.runs import ADAPTER, TINY, command, environment, journal, lines, overrides, weights

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


def test_a_signal_during_a_step_ends_the_run_with_that_step(settings, tmp_path, monkeypatch):
    from entrodrop_tune.training import step

    real_forward, calls = step.forward, []

    def forward(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_forward(*arguments)

    monkeypatch.setattr(step, "forward", forward)
    assert run_training("full_finetune", load_config(TINY, settings("run"))) == EXIT_INTERRUPTED
    assert steps_done(tmp_path / "run") == 3
    assert (tmp_path / "run" / "last").readlink().name == "step_3"


def test_a_run_interrupted_by_exception_goes_on_from_its_last_checkpoint(settings, tmp_path, monkeypatch):
    recipe, more = CASES["full"]
    assert run_training(recipe, load_config(TINY, settings("reference", *more))) == 0
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


@pytest.mark.parametrize(
    "write", [lambda run: Journal(run / "metrics.jsonl").append({"step": 1}), lambda run: RunRecord(run).update(a=1)]
)
def test_a_full_disk_under_the_text_files_is_told_as_under_a_checkpoint(write, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))
    try:
        with pytest.raises(CheckpointError, match=r"(metrics.jsonl|run.json) could not be written: .*File too large"):
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the disk that is always full is Linux's")
def test_a_run_whose_journal_meets_a_full_disk_ends_in_one_line(settings, monkeypatch, run_main):
    append = Journal.append
    monkeypatch.setattr(Journal, "append", lambda self, row: append(Journal(Path("/dev/full")), row))
    arguments = settings("run", *CASES["full"][1])
    code, error = run_main(full_finetune.recipe_main, "--config", TINY, *arguments)
    assert code == 1
    assert re.search(r"error: /dev/full could not be written: .*No space left.*resume=true.\n$", error), error


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


@pytest.mark.parametrize("first", [4, 8])
def test_a_run_that_max_steps_ended_goes_on_as_if_it_had_not_stopped(first, settings, tmp_path):
    """It validates once more than planned, for whoever stops there; nothing of that may reach a longer run."""
    adaptive = ["entrodrop.full_at_gap=0.01", "entrodrop.preset=constant", "validation.early_stopping_patience=2"]
    more = [*adaptive, "checkpoint.every_n_steps=null", "checkpoint.keep_last=1", "optimizer.lr=0.02", "epochs=6"]
    recipe, reference, halves = "full_finetune", tmp_path / "reference", tmp_path / "halves"
    assert run_training(recipe, load_config(TINY, settings("reference", *more))) == 0
    assert run_training(recipe, load_config(TINY, settings("halves", *more, f"max_steps={first}"))) == 0
    seen = lines(halves / "validation.jsonl")
    assert seen[-1]["step"] == first
    summary = json.loads((halves / "run.json").read_text())["summary"]
    best = min(seen[1:], key=lambda row: row["nll"])
    assert (summary["best_step"], summary["best_value"]) == (best["step"], best["nll"])
    assert (halves / "best").readlink().name == f"step_{best['step']}"
    assert run_training(recipe, load_config(TINY, settings("halves", *more, "resume=true"))) == 0
    assert journal(halves) == journal(reference)
    assert {row["drop_rate"] for row in lines(reference / "metrics.jsonl")} > {0.0}, "the gap plays a part"
    assert weights(halves / "last") == weights(reference / "last")
    assert (halves / "best").readlink() == (reference / "best").readlink()
    models = [(run / "best" / "model.safetensors").read_bytes() for run in (halves, reference)]
    assert models[0] == models[1]


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


@pytest.fixture
def own_data(tiny_data, tmp_path):
    return shutil.copytree(tiny_data, tmp_path / "data")


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_resuming_on_a_changed_file_is_refused_by_name(name, own_data, lively_model, tmp_path):
    settings = overrides(lively_model, own_data, tmp_path / "run", *SETTINGS)
    assert run_training("full_finetune", load_config(TINY, [*settings, "max_steps=4"])) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json*")}
    rows = (own_data / name).read_text()
    (own_data / name).write_text(rows.replace("What is", "What was", 1))
    config = load_config(TINY, [*settings, "resume=true"])
    with pytest.raises(UserError, match=f"the content of .*{name} has changed"):
        run_training("full_finetune", config)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json*")}
    (own_data / name).write_text(rows)
    assert run_training("full_finetune", config) == 0


def test_resuming_with_another_tokenizer_is_refused(lively_model, tiny_data, tmp_path):
    model = shutil.copytree(lively_model, tmp_path / "model")
    settings = overrides(model, tiny_data, tmp_path / "run", *SETTINGS)
    assert run_training("full_finetune", load_config(TINY, [*settings, "max_steps=4"])) == 0
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:10]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"train_tokens = \d+, it now has \d+. Restore the tokenizer"):
        run_training("full_finetune", load_config(TINY, [*settings, "resume=true"]))


def test_a_finished_run_is_left_alone(settings, tmp_path, capsys):
    recipe, more = CASES["full"]
    assert run_training(recipe, load_config(TINY, settings("run", *more))) == 0
    before = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    assert run_training(recipe, load_config(TINY, settings("run", *more, "resume=true"))) == 0
    assert "finished run; nothing to do" in capsys.readouterr().out
    assert before == {path: os.stat(path).st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}


# Two processes, and one with twice the accumulation: the same global batches. See test_distributed.py for eps.
CALM = ["optimizer.lr=0.001", "optimizer.eps=0.001", "entrodrop.drop_rate=0.7", "checkpoint.every_n_steps=2"]
ALONE = ["gradient_accumulation_steps=2", "resume=true"]


def one_of_a_pair(rank: int, port: int, arguments: list[str], failures, file_limit: int | None) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    if rank == 1 and file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    try:
        sys.exit(run_training("full_finetune", load_config(TINY, arguments)))
    except CheckpointError as error:
        failures.put((rank, str(error)))


def start_pair(arguments: list[str], failures=None, file_limit: int | None = None) -> list[BaseProcess]:
    """A run on two processes, without the launcher (and without its imports, which the server has done)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fixed = (port, arguments, failures, file_limit)
    pair = [PROCESSES.Process(target=one_of_a_pair, args=(rank, *fixed)) for rank in range(2)]
    for process in pair:
        process.start()
    return pair


def run_pair(arguments: list[str]) -> None:
    pair = start_pair(arguments)
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]


@pytest.fixture
def killed_pair(settings, tmp_path):
    """The folder of a run on two processes, SIGKILLed once it had saved a few checkpoints."""
    run = tmp_path / "killed"
    pair = start_pair(settings("killed", *CALM, "epochs=20"))
    while steps_done(run) < 7 and pair[0].is_alive():
        time.sleep(0.001)
    for process in pair:
        process.kill()
        process.join()
    return run


def same_masks_and_losses(run, reference) -> None:
    rows, expected = (lines(folder / "metrics.jsonl") for folder in (run, reference))
    assert [row["kept_fraction"] for row in rows] == [row["kept_fraction"] for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-4)


@pytest.mark.slow
def test_a_killed_pair_goes_on_as_a_pair_or_alone(killed_pair, settings, tmp_path):
    """Each process keeps its own part of the optimizer; DCP joins the parts for one process, and cuts for two."""
    more = [*CALM, "epochs=20", "max_steps=14"]
    shards = sorted(path.name for path in (killed_pair / "last" / "resume" / "optimizer").iterdir())
    assert [name[:11] for name in shards[:: len(shards) // 2]] == ["shard-00001", "shard-00002"]
    shutil.copytree(killed_pair, tmp_path / "alone", symlinks=True)
    run_pair(settings("killed", *more, "resume=true"))
    run_pair(settings("pair", *more))
    assert journal(killed_pair) == journal(tmp_path / "pair")
    assert weights(killed_pair / "last") == weights(tmp_path / "pair" / "last")
    assert run_training("full_finetune", load_config(TINY, settings("alone", *more, *ALONE))) == 0
    same_masks_and_losses(tmp_path / "alone", tmp_path / "pair")
    assert not list((tmp_path / "alone" / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_damaged_part_falls_back_to_the_checkpoint_before(killed_pair, settings, capsys):
    part = max((killed_pair / "last" / "resume" / "optimizer").iterdir())
    part.write_bytes(part.read_bytes()[:-1] + b"\xff")
    damaged = (killed_pair / "last").readlink().name
    more = [*CALM, "epochs=20", "max_steps=14", *ALONE]
    assert run_training("full_finetune", load_config(TINY, settings("killed", *more))) == 0
    message = capsys.readouterr().err
    assert re.search(rf"{damaged} is damaged \(optimizer/shard-\S+ does not match its hash\)", message)
    assert lines(killed_pair / "metrics.jsonl")[-1]["step"] == 14


@pytest.mark.slow
def test_a_part_that_cannot_be_written_stops_both_and_publishes_nothing(settings, tmp_path):
    failures = PROCESSES.SimpleQueue()
    for process in start_pair(settings("run", *CALM), failures, file_limit=20_000):
        process.join()
    told = dict(failures.get() for _ in range(2))
    assert all(re.search(r"step_2 was not saved: .*File too large.*newest: none", told[rank]) for rank in (0, 1)), told
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_pair_resumes_with_an_optimizer_that_keeps_nothing(settings, tmp_path):
    plain = ["optimizer._component_=torch.optim.SGD", "optimizer.lr=0.01", "checkpoint.every_n_steps=2"]
    for steps in (2, 4):
        run_pair(settings("run", *plain, f"max_steps={steps}", "resume=true"))
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 4


@pytest.mark.slow
def test_one_process_then_two(settings, tmp_path):
    assert run_training("full_finetune", load_config(TINY, settings("run", *CALM, *ALONE, "max_steps=5"))) == 0
    run_pair(settings("run", *CALM, "max_steps=9", "resume=true"))
    assert run_training("full_finetune", load_config(TINY, settings("alone", *CALM, *ALONE, "max_steps=9"))) == 0
    same_masks_and_losses(tmp_path / "run", tmp_path / "alone")
