"""Samples → the rows of an epoch → batches. Everything is a pure function of (data, seed, epoch)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entrodrop_tune.data.load import TrainingData
from entrodrop_tune.data.sample import Sample, distinct_ids, hash_order
from entrodrop_tune.errors import UserError
from entrodrop_tune.method import IGNORE_INDEX

Row = tuple[Sample, ...]
"""Samples that share one sequence; one sample without packing."""

_SHUFFLE, _WEIGHT, _REPLAY = 1, 2, 3
_LENGTH_WINDOW = 64
"""Samples sorted by length together: enough to even out a batch, few enough to keep batches different each epoch."""
_OPEN_ROWS = 64
"""Packing looks this many unfinished sequences back, so that an epoch's order stays close to the shuffle."""


@dataclass(frozen=True)
class Batch:
    """``B`` sequences of ``T`` tokens, padded on the right."""

    tokens: Tensor
    """int64 ``[B, T]``."""
    labels: Tensor
    """int64 ``[B, T]``: the next token where it is to be learned, -100 elsewhere."""
    sample_ids: Tensor
    """int64 ``[B, T]``; -1 at padding."""
    positions: Tensor
    """int64 ``[B, T]``: position within the sample; 0 at padding."""
    mask: Tensor | None
    """``None`` for plain causal attention, else bool ``[B, T, T]``, true where row attends to column."""


def epoch_rows(data: TrainingData, seed: int, epoch: int) -> list[Row]:
    """The sequences of one epoch in training order: weighted, with replay mixed in, shuffled, packed if asked.

    Raises:
        UserError: a weight or the replay ratio is so small that an epoch holds no row of its source.
    """
    ids = np.array([sample.id for sample in data.train], dtype=np.int64)
    samples = [data.train[i] for i in _weighted(ids, data.weights, seed, epoch)]
    samples += _replay(data, seed, epoch)
    ids, _ = distinct_ids(samples)
    shuffled = [samples[i] for i in hash_order(ids, _SHUFFLE, seed, epoch)]
    if data.config.packing:
        return pack(shuffled, data.config.max_length)
    if data.config.group_by_length:
        windows = range(0, len(shuffled), _LENGTH_WINDOW)
        shuffled = [s for i in windows for s in sorted(shuffled[i : i + _LENGTH_WINDOW], key=len)]
    return [(sample,) for sample in shuffled]


def _weighted(ids: NDArray[np.int64], weights: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.intp]:
    """Indices into ``ids``: whole copies, and for a fraction the next stretch of a fixed cycle through the rows."""
    chosen = []
    for weight in np.unique(weights):
        members = np.flatnonzero(weights == weight)
        count = _rows_an_epoch("the weight of a source in data.train", float(weight), len(members))
        chosen.append(members[_cycle(ids[members], count, epoch, _WEIGHT, seed)])
    return np.concatenate(chosen)


def _replay(data: TrainingData, seed: int, epoch: int) -> list[Sample]:
    if data.config.replay is None:
        return []
    count = _rows_an_epoch("data.replay.ratio", data.config.replay.ratio, len(data.train))
    ids = np.array([sample.id for sample in data.replay], dtype=np.int64)
    return [data.replay[i] for i in _cycle(ids, count, epoch, _REPLAY, seed)]


def _rows_an_epoch(key: str, share: float, rows: int) -> int:
    count = round(share * rows)
    if count == 0:
        raise UserError(
            f"{key} is {share:g}: of {rows} training rows that rounds to no row an epoch. "
            f"Set it to {1 / rows:.2g} or more, or leave the source out."
        )
    return count


def _cycle(ids: NDArray[np.int64], count: int, epoch: int, tag: int, seed: int) -> NDArray[np.intp]:
    """``count`` indices for this epoch from an endless walk through ``ids`` that shows all before any again."""
    walk = np.arange(epoch * count, (epoch + 1) * count)
    rounds, offsets = np.divmod(walk, len(ids))
    out = np.empty(count, dtype=np.intp)
    for number in np.unique(rounds):
        order = hash_order(ids, tag, seed, int(number))
        out[rounds == number] = order[offsets[rounds == number]]
    return out


def pack(samples: Sequence[Sample], max_length: int) -> list[Row]:
    """Greedy first fit into sequences of up to ``max_length`` tokens, in order."""
    rows: list[list[Sample]] = []
    space: list[int] = []
    for sample in samples:
        first = max(0, len(rows) - _OPEN_ROWS)
        target = next((i for i in range(first, len(rows)) if space[i] >= len(sample)), None)
        if target is None:
            rows.append([sample])
            space.append(max_length - len(sample))
        else:
            rows[target].append(sample)
            space[target] -= len(sample)
    return [tuple(row) for row in rows]


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Pad ``rows`` to the longest of them."""
    length = max(sum(len(sample) for sample in row) for row in rows)
    shape = (len(rows), length)
    tokens = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    sample_ids = np.full(shape, -1, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    documents = np.full(shape, -1, dtype=np.int64)
    for b, row in enumerate(rows):
        start = 0
        for number, sample in enumerate(row):
            end = start + len(sample)
            tokens[b, start:end] = sample.tokens
            labels[b, start : end - 1] = np.where(sample.is_target[1:], sample.tokens[1:], IGNORE_INDEX)
            sample_ids[b, start:end] = sample.id
            positions[b, start:end] = np.arange(len(sample))
            documents[b, start:end] = number
            start = end
    mask = None
    if any(len(row) > 1 for row in rows):
        same = torch.from_numpy(documents[:, :, None] == documents[:, None, :])
        mask = same & torch.ones(length, length, dtype=torch.bool).tril()
    as_tensor = torch.from_numpy
    return Batch(as_tensor(tokens), as_tensor(labels), as_tensor(sample_ids), as_tensor(positions), mask)
