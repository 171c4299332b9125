"""Validation: plain NLL on held-out rows. Nothing is ever dropped here, and no logits are kept."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from entrodrop_tune.data import Batch, Row, Sample, collate
from entrodrop_tune.method import IGNORE_INDEX, LossOutput
from entrodrop_tune.training.distributed import World, all_gather_objects
from entrodrop_tune.training.loss_model import LossModel


@dataclass(frozen=True)
class SampleScores:
    """Per-token values of one sample's target tokens, in order.

    Attributes:
        positions: positions in the sample the predictions were made *from*, int64 ``[targets]``.
        nll: negative log-likelihood in nats, float64 ``[targets]``.
        entropy: predictive entropy in nats, float64 ``[targets]``.
        correct: whether the most likely token was the right one, bool ``[targets]``.
    """

    positions: np.ndarray
    nll: np.ndarray
    entropy: np.ndarray
    correct: np.ndarray


def microbatches(rows: Sequence[Row], size: int, world: World, pad_id: int) -> Iterator[Batch]:
    """This rank's share of ``rows``, ``size`` rows at a time.

    Microbatch ``m`` of rank ``r`` holds rows ``(m * world + r) * size`` onwards. Every rank gets the same number of
    microbatches, since each forward pass is collective under FSDP: a rank without rows repeats one, asking for nothing.
    """
    for start in range(0, len(rows), size * world.size):
        mine = rows[start + world.rank * size :][:size]
        batch = collate(mine or rows[:1], pad_id)
        if not mine:
            batch = replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX))
        yield to_device(batch, world.device)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """``batch`` with its tensors on ``device``."""
    return Batch(
        tokens=batch.tokens.to(device),
        labels=batch.labels.to(device),
        sample_ids=batch.sample_ids.to(device),
        positions=batch.positions.to(device),
        mask=None if batch.mask is None else batch.mask.to(device),
    )


def forward(model: LossModel, batch: Batch, select: Callable | None = None) -> LossOutput:
    return model(batch.tokens, batch.labels, batch.positions, batch.mask, select)


@torch.no_grad()
def score_samples(
    model: LossModel,
    samples: Sequence[Sample],
    batch_size: int,
    world: World,
    pad_id: int,
    progress: Callable,
) -> list[SampleScores]:
    """Score every target token of ``samples``; the same on every rank, whatever the world size or batch size."""
    model.eval()
    # Short and long samples apart: less padding. The order of the result does not depend on it.
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].tokens))
    rows: list[Row] = [(samples[i],) for i in order]
    batches = microbatches(rows, batch_size, world, pad_id)
    count = math.ceil(len(rows) / (batch_size * world.size))
    mine: dict[int, SampleScores] = {}
    for number, batch in enumerate(progress(batches, total=count)):
        output = forward(model, batch)
        first = (number * world.size + world.rank) * batch_size
        mine |= {order[first + row]: scores for row, scores in _by_row(batch, output)}
    model.train()
    by_sample = {index: scores for part in all_gather_objects(mine, world) for index, scores in part.items()}
    return [by_sample[index] for index in range(len(samples))]


def _by_row(batch: Batch, output: LossOutput) -> Iterator[tuple[int, SampleScores]]:
    shape = batch.labels.shape
    nll, entropy = (values.view(shape).double().cpu().numpy() for values in (output.nll, output.entropy))
    assert output.correct is not None, "the model scores in evaluation mode"
    correct = output.correct.view(shape).cpu().numpy()
    valid, positions = (batch.labels != IGNORE_INDEX).cpu().numpy(), batch.positions.cpu().numpy()
    for row in np.flatnonzero(valid.any(axis=1)):
        at = valid[row]
        yield int(row), SampleScores(positions[row, at], nll[row, at], entropy[row, at], correct[row, at])


class Validator:
    """Scores the validation samples and splits them, once and for all, at the base model's median entropy."""

    def __init__(self, samples: Sequence[Sample], batch_size: int, world: World, pad_id: int) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.world = world
        self.pad_id = pad_id
        self.low_entropy: np.ndarray | None = None

    def run(self, model: LossModel, progress: Callable) -> dict[str, float]:
        """One validation; the first call, on the untouched model, fixes the low/high-entropy halves."""
        started = time.perf_counter()
        scores = score_samples(model, self.samples, self.batch_size, self.world, self.pad_id, progress)
        nlls, entropies, correct = (
            np.concatenate([getattr(sample, name) for sample in scores]) for name in ("nll", "entropy", "correct")
        )
        if self.low_entropy is None:
            self.low_entropy = entropies < np.median(entropies)
        nll = float(nlls.mean())
        return {
            "nll": nll,
            "perplexity": math.exp(min(nll, 700.0)),
            "token_accuracy": float(correct.mean()),
            "nll_low_entropy": _mean(nlls[self.low_entropy]),
            "nll_high_entropy": _mean(nlls[~self.low_entropy]),
            "entropy_mean": float(entropies.mean()),
            "tokens": int(nlls.size),
            "seconds": time.perf_counter() - started,
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {} if self.low_entropy is None else {"low_entropy": torch.from_numpy(self.low_entropy)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.low_entropy = state["low_entropy"].numpy() if state else None


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
