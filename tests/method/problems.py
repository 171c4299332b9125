"""Small random problems for the fused loss."""

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    hidden: Tensor
    weight: Tensor
    labels: Tensor


def problem(
    rows: int = 37, dim: int = 8, vocab: int = 50, *, dtype=torch.float64, seed: int = 0, ignored: int = 5, scale=1.0
) -> Problem:
    """Random inputs that require gradients; every ``ignored``-th label is -100 (0: none)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, dim, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(vocab, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocab, (rows,), generator=generator)
    if ignored:
        labels[::ignored] = -100
    return Problem(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels)


def fixed(row_weights: Tensor):
    """A ``select`` that ignores the statistics."""
    return lambda entropy, nll, rows: row_weights[rows]


def relative(got: Tensor, expected: Tensor) -> float:
    """``|got - expected| / |expected|`` in float64."""
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-300))
