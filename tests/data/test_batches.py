"""Epochs and batches: pure functions of data, seed and epoch."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from entrodrop_tune.config import validate
from entrodrop_tune.data import DataConfig, Sample, collate, epoch_rows, load_data
from entrodrop_tune.data.batches import pack
from entrodrop_tune.errors import UserError
from tests.tiny import tiny_dataset, tiny_tokenizer


def _data(tmp_path, rows=40, **options):
    path = tiny_dataset(tmp_path / "train.jsonl", rows)
    options = {"train": str(path), "cache_dir": None, "validation_fraction": 0.0, **options}
    return load_data(validate(DataConfig, options), tiny_tokenizer(), progress=False)


def _flat(rows) -> list[int]:
    return [sample.id for row in rows for sample in row]


def test_epoch_shows_every_sample_once_in_an_order_of_its_own(tmp_path):
    data = _data(tmp_path)
    epochs = [_flat(epoch_rows(data, seed=0, epoch=epoch)) for epoch in range(3)]
    assert all(sorted(ids) == sorted(s.id for s in data.train) for ids in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != _flat(epoch_rows(data, seed=1, epoch=0))
    assert epochs[1] == _flat(epoch_rows(data, seed=0, epoch=1))


def test_order_does_not_depend_on_the_files_order_or_the_process(tmp_path):
    data = _data(tmp_path)
    expected = _flat(epoch_rows(data, seed=7, epoch=2))
    path = tmp_path / "train.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    options = {"train": str(path), "cache_dir": None, "validation_fraction": 0.0}
    code = (
        "import json, sys; from entrodrop_tune.data import *; from tests.tiny import tiny_tokenizer;"
        "data = load_data(DataConfig(**json.loads(sys.argv[1])), tiny_tokenizer(), progress=False);"
        "print(json.dumps([s.id for row in epoch_rows(data, seed=7, epoch=2) for s in row]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(options)], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == expected


def test_shuffle_is_uniform_enough(tmp_path):
    data = _data(tmp_path)
    first = Counter(_flat(epoch_rows(data, seed=0, epoch=epoch))[0] for epoch in range(2000))
    # 40 samples, 50 expected each: chi-square with 39 degrees of freedom stays under 80 but once in 10,000.
    assert sum((first[s.id] - 50) ** 2 / 50 for s in data.train) < 80


def test_weights_set_how_often_a_row_is_seen(tmp_path):
    paths = [tiny_dataset(tmp_path / f"{i}.jsonl", 10, offset=100 * i) for i in range(3)]
    sources = [{"path": str(path), "weight": weight} for path, weight in zip(paths, (1, 0.5, 2), strict=True)]
    data = _data(tmp_path, train=sources)
    groups = [{s.id for s in data.train[10 * i : 10 * i + 10]} for i in range(3)]
    epochs = [Counter(_flat(epoch_rows(data, seed=0, epoch=epoch))) for epoch in range(2)]
    for counts in epochs:
        assert [sum(counts[i] for i in group) for group in groups] == [10, 5, 20]
        assert all(counts[i] == 2 for i in groups[2])
    both = epochs[0] + epochs[1]
    assert all(both[i] == 1 for i in groups[1])  # two halves make the whole


def test_replay_is_mixed_in_and_shows_all_before_any_again(tmp_path):
    general = tiny_dataset(tmp_path / "general.jsonl", 10, offset=500)
    data = _data(tmp_path, replay={"path": str(general), "ratio": 0.125})
    replay = {sample.id for sample in data.replay}
    epochs = [[i for i in _flat(epoch_rows(data, seed=0, epoch=epoch)) if i in replay] for epoch in range(4)]
    assert [len(ids) for ids in epochs] == [5, 5, 5, 5]
    assert set(epochs[0] + epochs[1]) == replay == set(epochs[2] + epochs[3])
    assert set(epochs[0]) != set(epochs[2])
    places = [k for k, i in enumerate(_flat(epoch_rows(data, seed=0, epoch=0))) if i in replay]
    assert max(places) - min(places) > 10


@pytest.mark.parametrize(
    ("rows", "weight", "least"), [(1, 0.5, "1"), (12, 0.02, "0.083")], ids=["never seen", "no step"]
)
def test_a_weight_that_rounds_to_no_row_is_refused(tmp_path, rows, weight, least):
    light = {"path": str(tiny_dataset(tmp_path / "light.jsonl", rows, offset=500)), "weight": weight}
    for train in ([light], [light, str(tiny_dataset(tmp_path / "full.jsonl", 10))]):
        with pytest.raises(UserError, match=rf"data\.train is {weight}: of {rows} .* Set it to {least} or more"):
            epoch_rows(_data(tmp_path, train=train), seed=0, epoch=0)


def test_a_replay_ratio_that_rounds_to_no_row_is_refused(tmp_path):
    general = str(tiny_dataset(tmp_path / "general.jsonl", 10, offset=500))
    with pytest.raises(UserError, match=r"data\.replay\.ratio is 0\.01: of 40 .* Set it to 0\.025 or more"):
        epoch_rows(_data(tmp_path, replay={"path": general, "ratio": 0.01}), seed=0, epoch=0)
    enough = _data(tmp_path, replay={"path": general, "ratio": 0.025})
    assert len(epoch_rows(enough, seed=0, epoch=0)) == 41


def test_packing_keeps_every_sample_whole_and_fills_rows(tmp_path):
    data = _data(tmp_path, packing=True, max_length=200)
    rows = epoch_rows(data, seed=0, epoch=0)
    assert Counter(_flat(rows)) == Counter(s.id for s in data.train)
    lengths = [sum(len(s) for s in row) for row in rows]
    assert max(lengths) <= 200 and max(len(row) for row in rows) > 1
    assert sum(lengths) / (200 * len(rows)) > 0.85


def test_group_by_length_saves_padding_and_keeps_epochs_different(tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [{"question": "Why?", "answer": "word " * (1 + i * 7 % 50)} for i in range(200)]
    path.write_text("".join(json.dumps({**row, "question": f"{i}?"}) + "\n" for i, row in enumerate(rows)))

    def padded(rows, batch=8):
        batches = [rows[i : i + batch] for i in range(0, len(rows), batch)]
        return sum(len(b) * max(len(row[0]) for row in b) for b in batches)

    plain = epoch_rows(_data(tmp_path, train=str(path)), seed=0, epoch=0)
    data = _data(tmp_path, train=str(path), group_by_length=True)
    grouped, second = (epoch_rows(data, seed=0, epoch=epoch) for epoch in (0, 1))
    tokens = sum(len(sample) for sample in data.train)
    assert tokens / padded(grouped) > 0.85 > 0.75 > tokens / padded(plain)
    assert Counter(_flat(grouped)) == Counter(_flat(plain)) == Counter(_flat(second))
    assert {frozenset(_flat(grouped)[:8])}.isdisjoint({frozenset(_flat(second)[i : i + 8]) for i in range(0, 200, 8)})


def _sample(number: int, length: int) -> Sample:
    tokens = np.arange(10 * number, 10 * number + length, dtype=np.int32)
    return Sample(number, tokens, np.arange(length) >= 2)


def test_pack_is_first_fit():
    samples = [_sample(i, n) for i, n in enumerate((6, 5, 4, 5, 10))]
    assert [[s.id for s in row] for row in pack(samples, 10)] == [[0, 2], [1, 3], [4]]


def test_collate_shifts_labels_and_pads_on_the_right():
    batch = collate([(_sample(1, 5),), (_sample(2, 3),)], pad_id=99)
    assert batch.tokens.tolist() == [[10, 11, 12, 13, 14], [20, 21, 22, 99, 99]]
    assert batch.labels.tolist() == [[-100, 12, 13, 14, -100], [-100, 22, -100, -100, -100]]
    assert batch.sample_ids.tolist() == [[1] * 5, [2, 2, 2, -1, -1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]
    assert batch.mask is None
    assert all(t.dtype == torch.int64 for t in (batch.tokens, batch.labels, batch.sample_ids, batch.positions))


def test_collate_packed_restarts_positions_and_masks_documents():
    batch = collate([(_sample(1, 3), _sample(2, 2)), (_sample(3, 4),)], pad_id=99)
    assert batch.labels.tolist() == [[-100, 12, -100, -100, -100], [-100, 32, 33, -100, -100]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert batch.mask is not None and batch.mask[0].int().tolist() == expected
    assert batch.mask[1].int().tolist()[4] == [0, 0, 0, 0, 1]  # padding sees itself: softmax over nothing is NaN


@pytest.mark.parametrize("packing", [False, True])
def test_labels_are_the_targets_of_each_sample(tmp_path, packing):
    data = _data(tmp_path, packing=packing, max_length=200)
    rows = epoch_rows(data, seed=0, epoch=0)
    batch = collate(rows[:8], pad_id=0)
    learned = Counter()
    for row in rows[:8]:
        for sample in row:
            for position in np.flatnonzero(sample.is_target):
                learned[(sample.id, int(position), int(sample.tokens[position]))] += 1
    found = Counter()
    for b, t in (batch.labels != -100).nonzero().tolist():
        found[(int(batch.sample_ids[b, t]), int(batch.positions[b, t]) + 1, int(batch.labels[b, t]))] += 1
    assert found == learned and len(found) > 50
