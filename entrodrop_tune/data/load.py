"""The ``data`` section → training, validation and replay samples."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrodrop_tune.data.config import DataConfig
from entrodrop_tune.data.report import DataReport, SourceReport
from entrodrop_tune.data.sample import Sample, distinct_ids, hash_order
from entrodrop_tune.data.source import load_source
from entrodrop_tune.errors import UserError

_SPLIT = 0x53504C49
"""Keeps the split's hash apart from the epochs' shuffles."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Everything a run sees."""

    train: list[Sample]
    weights: NDArray[np.float64]
    """How often each training sample is seen per epoch, ``[len(train)]``."""
    validation: list[Sample]
    replay: list[Sample]
    config: DataConfig
    report: DataReport


def load_data(config: DataConfig, tokenizer: Any, progress: bool = True, context: int | None = None) -> TrainingData:
    """Load all sources, hold out validation rows if none are given, and count duplicates and leaks.

    Args:
        config: What to load.
        tokenizer: The model's.
        progress: Show bars.
        context: The model's longest sequence, in tokens, if it is to be checked.

    Raises:
        UserError: a source is missing, unreadable, or holds rows the config or the model refuses.
    """
    train: list[Sample] = []
    weights: list[float] = []
    reports: list[SourceReport] = []
    for source in config.train:
        samples, counts = load_source(source, config, tokenizer, progress)
        train += samples
        weights += [source.weight] * len(samples)
        reports.append(counts)
    validation, validation_reports = _load_optional(config.validation, config, tokenizer, progress)
    replay, replay_reports = _load_optional(config.replay, config, tokenizer, progress)
    _refuse_beyond_context([*train, *validation, *replay], config, context)
    weight_array = np.asarray(weights)
    if config.validation is None and config.validation_fraction > 0:
        train, weight_array, validation = _hold_out(train, weight_array, config)
    contents = {sample.tokens.tobytes() for sample in train}
    report = DataReport(
        train=reports,
        validation=validation_reports,
        replay=replay_reports,
        train_samples=len(train),
        validation_samples=len(validation),
        replay_samples=len(replay),
        train_tokens=sum(len(sample) for sample in train),
        train_target_tokens=_target_tokens(train),
        validation_target_tokens=_target_tokens(validation),
        duplicates=distinct_ids(train)[1],
        leaks=sum(sample.tokens.tobytes() in contents for sample in validation),
    )
    train, validation, replay = (_with_distinct_ids(samples) for samples in (train, validation, replay))
    return TrainingData(train, weight_array, validation, replay, config, report)


def _load_optional(
    source: Any, config: DataConfig, tokenizer: Any, progress: bool
) -> tuple[list[Sample], list[SourceReport]]:
    if source is None:
        return [], []
    samples, report = load_source(source, config, tokenizer, progress)
    return samples, [report]


def _refuse_beyond_context(samples: list[Sample], config: DataConfig, context: int | None) -> None:
    longest = config.max_length if config.packing else max(len(sample) for sample in samples)
    if context is not None and longest > context:
        raise UserError(
            f"{'packed sequences' if config.packing else 'samples'} have up to {longest} tokens, but the model's "
            f"context is {context}: set data.max_length={context} (and data.too_long to skip, truncate or split)."
        )


def _target_tokens(samples: Iterable[Sample]) -> int:
    return sum(int(sample.is_target[1:].sum()) for sample in samples)


def _hold_out(
    train: list[Sample], weights: NDArray[np.float64], config: DataConfig
) -> tuple[list[Sample], NDArray[np.float64], list[Sample]]:
    """Split by content: repeats of a row stay on one side, and the order of rows does not matter."""
    contents = np.unique(np.array([sample.id for sample in train], dtype=np.int64))
    count = round(config.validation_fraction * len(contents))
    if not 0 < count < len(contents):
        raise UserError(
            f"data.validation_fraction={config.validation_fraction} of {len(contents)} distinct rows leaves "
            f"{'nothing to validate on' if count == 0 else 'nothing to train on'}. Change it, give "
            "data.validation a file, or set data.validation_fraction=0 to train without validation."
        )
    held_out = set(contents[hash_order(contents, _SPLIT, config.split_seed)[:count]].tolist())
    chosen = np.array([sample.id in held_out for sample in train])
    rest = [sample for sample, out in zip(train, chosen, strict=True) if not out]
    return rest, weights[~chosen], [sample for sample, out in zip(train, chosen, strict=True) if out]


def _with_distinct_ids(samples: list[Sample]) -> list[Sample]:
    ids, repeats = distinct_ids(samples)
    return [replace(s, id=int(i)) for s, i in zip(samples, ids, strict=True)] if repeats else samples
