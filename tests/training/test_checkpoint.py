"""Checkpoint folders: whole or absent, verified, pruned without losing `best` or `last`."""

import errno

import pytest
import torch
from safetensors.torch import save_file

from entrodrop_tune.training.checkpoint import RESUME, CheckpointError, CheckpointStore
from entrodrop_tune.training.sharded import check_complete


def write_model(folder):
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / RESUME).mkdir()
    (folder / RESUME / "state.json").write_text("{}")


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path)


def test_a_saved_checkpoint_is_good_and_pointed_at(store, tmp_path):
    store.save(3, write_model)
    store.point("last", 3)
    assert (tmp_path / "last" / "model.safetensors").read_bytes() == b"weights"
    assert store.pointed("last") == 3
    assert store.newest_good(warn=pytest.fail) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_failed_save_publishes_nothing_and_names_the_last_good_one(store, number):
    store.save(1, write_model)

    def run_out_of_disk(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(number, "No space left on device")

    with pytest.raises(CheckpointError, match=r"step_2 was not saved.*newest: .*step_1"):
        store.save(2, run_out_of_disk)
    assert store.steps() == [1]
    assert [entry.name for entry in store.folder.iterdir()] == ["step_1"]


@pytest.mark.parametrize("missing", ["part", "tensor"])
def test_parts_that_process_0_cannot_see_are_not_published(store, missing):
    """As on machines that do not share a file system."""
    whole = {"exp_avg": torch.zeros(8, 2), "step": torch.tensor(3.0)}
    seen = {"part": {**whole, "exp_avg": torch.zeros(4, 2)}, "tensor": {"step": whole["step"]}}[missing]
    store.shards(1).mkdir(parents=True)
    save_file(seen, store.shards(1) / "shard-00001.safetensors")
    refusal = pytest.raises(CheckpointError, match=r"exp_avg is not whole .* share the file system of output_dir")
    with refusal, store.disk_trouble_explained(1):
        check_complete(store.shards(1), whole)
    assert not store.shards(1).exists()
    store.shards(2).mkdir()
    save_file(whole, store.shards(2) / "shard-00001.safetensors")
    check_complete(store.shards(2), whole)


def test_an_error_in_our_own_code_is_not_taken_for_a_full_disk(store):
    def broken(folder):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        store.save(1, broken)
    assert store.steps() == []


def test_a_published_checkpoint_is_never_overwritten(store):
    store.save(1, write_model)
    store.save(1, lambda folder: pytest.fail("wrote again"))
    assert store.newest_good(warn=pytest.fail) == 1


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"weighty"), "does not match its hash"),
        (lambda folder: (folder / "model.safetensors").unlink(), "is missing"),
        (lambda folder: (folder / RESUME / "state.json").write_text('{"step": 9}'), "does not match its hash"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "missing or unreadable"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(store, harm, reason):
    store.save(1, write_model)
    store.save(2, write_model)
    harm(store.path(2))
    warnings = []
    assert store.newest_good(warnings.append) == 1
    assert len(warnings) == 1 and "step_2" in warnings[0] and reason in warnings[0]


def test_pruning_keeps_the_newest_and_the_best_without_its_resume_state(store):
    for step in range(1, 6):
        store.save(step, write_model)
    store.prune(keep_last=2, best={1, None})
    assert store.steps() == [1, 4, 5]
    assert not (store.path(1) / RESUME).exists()
    assert (store.path(1) / "model.safetensors").exists()
    assert store.newest_good(warn=pytest.fail) == 5


def test_pruning_goes_on_after_a_kill_while_it_deleted(store):
    for step in (1, 2):
        store.save(step, write_model)
    # Killed while step 1, then the best, lost its resume state.
    (store.path(1) / RESUME).rename(store.folder / ".trash_1")
    store.prune(keep_last=1, best={2})
    assert [entry.name for entry in store.folder.iterdir()] == ["step_2"]


def test_an_unfinished_folder_is_not_a_checkpoint(store):
    store.save(1, write_model)
    (store.folder / ".step_2.tmp").mkdir()
    assert store.steps() == [1]
    store.save(2, write_model)
    assert store.newest_good(warn=pytest.fail) == 2


def test_pointers_move_in_one_rename(store, tmp_path):
    for step in (1, 2):
        store.save(step, write_model)
        store.point("best", step)
        assert (tmp_path / "best").resolve() == store.path(step).resolve()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["best", "checkpoints"]
