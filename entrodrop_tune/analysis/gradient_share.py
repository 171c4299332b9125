"""Which tokens the gradient comes from: the share of each entropy range, before and after masking.

The gradient of the summed loss is the sum of its parts by entropy range, G = sum G_b. The share of a range is
<G_b, G> / |G|^2: it sums to one, and is negative where a range pulls against the whole. Masking keeps a range's tokens
with some probability k_b; in expectation over the coins the gradient is sum k_b G_b, and shares are taken of that.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from entrodrop_tune.analysis.entropy_profile import Domain, Setting
from entrodrop_tune.analysis.model_source import Subject
from entrodrop_tune.data import Batch, Sample, collate
from entrodrop_tune.method import IGNORE_INDEX, Select, linear_cross_entropy
from entrodrop_tune.models import hidden_states, output_weight
from entrodrop_tune.training.validation import to_device

Scope = Literal["hidden", "head", "model"]
SCOPES: dict[Scope, str] = {
    "hidden": "last hidden states",
    "head": "output layer",
    "model": "trainable weights",
}
BOUNDS = (0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Range:
    """Tokens with ``low <= entropy < high`` nats, kept with probability ``keep``."""

    low: float
    high: float
    keep: float

    def select(self, entropy: Tensor, nll: Tensor, rows: Tensor) -> Tensor:
        """Keeps this range's tokens: a ``select`` of the fused loss."""
        return (entropy >= self.low) & (entropy < self.high)


def entropy_ranges(entropy: np.ndarray, setting: Setting, threshold: float) -> list[Range]:
    """Ranges between quantiles of ``entropy``, cut at the threshold too, so that each is masked as a whole."""
    place = float((entropy < threshold).mean())
    # A cut right beside the threshold would make a range of next to no tokens.
    cuts = [float(np.quantile(entropy, bound)) for bound in BOUNDS if abs(bound - place) > 0.05]
    edges = [-np.inf, *sorted({*cuts, threshold}), np.inf]
    ranges = [
        Range(low, high, 1 - setting.drop_rate if high <= threshold else 1.0) for low, high in itertools.pairwise(edges)
    ]
    return [part for part in ranges if ((entropy >= part.low) & (entropy < part.high)).any()]


def gradient_share(
    subject: Subject,
    domain: Domain,
    setting: Setting,
    *,
    samples: int,
    scopes: Sequence[Scope] = ("hidden", "head"),
    progress: Callable = lambda ranges, total: ranges,
) -> dict[str, Any]:
    """Shares of the gradient by entropy range, on the first ``samples`` samples of the domain.

    ``hidden`` and ``head`` are exact and cost little over a forward pass. ``model`` takes a backward pass a range and
    holds one gradient of the trainable weights a range.
    """
    threshold = setting.threshold(domain.tokens["entropy"])
    tokens = domain.tokens[domain.tokens["sample"] < samples]
    ranges = entropy_ranges(tokens["entropy"].to_numpy(), setting, threshold)
    batches = _batches(domain.samples[:samples], subject)
    states = _States.of(subject, batches)
    entropy, nll = tokens["entropy"].to_numpy(), tokens["nll"].to_numpy()
    inside = np.stack([(entropy >= part.low) & (entropy < part.high) for part in ranges])
    members = torch.from_numpy(inside)
    measured = {"hidden": lambda: _hidden_products(states, members), "head": lambda: _head_products(states, members)}
    measured["model"] = lambda: _model_products(subject, batches, progress(ranges, total=len(ranges)))
    return {
        "samples": min(samples, len(domain.samples)),
        "tokens": len(tokens),
        "threshold_nats": threshold,
        "ranges": [
            {
                "low": max(0.0, part.low),
                "high": None if np.isinf(part.high) else part.high,
                "keep_probability": part.keep,
                "token_share": float(rows.mean()),
                "nll_share": float(nll[rows].sum() / nll.sum()),
            }
            for part, rows in zip(ranges, inside, strict=True)
        ],
        "scopes": {scope: shares(measured[scope](), [part.keep for part in ranges]) for scope in scopes},
    }


def shares(products: np.ndarray, keep: Sequence[float]) -> dict[str, Any]:
    """Norms and shares from the inner products ``[K, K]`` between the gradients of K ranges.

    Returns:
        ``norm`` of each range's part, ``before`` and ``after`` masking: shares that sum to one; ``norm_ratio``: length
        of the expected masked gradient over the full one.
    """
    full, masked = np.ones(len(keep)), np.asarray(keep)
    squares = {"before": float(full @ products @ full), "after": float(masked @ products @ masked)}
    return {
        "norm": np.sqrt(np.diag(products)).tolist(),
        "before": (full * (products @ full) / squares["before"]).tolist(),
        "after": (masked * (products @ masked) / squares["after"]).tolist() if squares["after"] > 0 else None,
        "norm_ratio": float(np.sqrt(squares["after"] / squares["before"])),
    }


def share_below(result: dict[str, Any], scope: str, when: Literal["before", "after"]) -> float | None:
    """The part of the gradient that tokens below the threshold give; None where masking leaves no gradient."""
    values = result["scopes"][scope][when]
    if values is None:
        return None
    ends = [part["high"] for part in result["ranges"]]
    return float(sum(v for v, high in zip(values, ends, strict=True) if high and high <= result["threshold_nats"]))


@dataclass(frozen=True)
class _States:
    """Output-layer inputs of all target tokens ``[N, D]``, their labels ``[N]``, and the output weight ``[V, D]``."""

    hidden: Tensor
    labels: Tensor
    weight: Tensor

    @staticmethod
    @torch.no_grad()
    def of(subject: Subject, batches: Sequence[Batch]) -> "_States":
        """One forward pass over ``batches``; only target tokens are kept."""
        hidden, labels = [], []
        for batch in batches:
            states = hidden_states(subject.model.decoder, batch.tokens, mask=batch.mask, input_pos=batch.positions)
            valid = batch.labels != IGNORE_INDEX
            hidden.append(states[valid])
            labels.append(batch.labels[valid])
        return _States(torch.cat(hidden), torch.cat(labels), output_weight(subject.model.decoder).detach())


def _batches(samples: Sequence[Sample], subject: Subject) -> list[Batch]:
    return [to_device(collate([(sample,)], subject.pad_id), subject.world.device) for sample in samples]


def _hidden_products(states: _States, inside: Tensor) -> np.ndarray:
    """Rows of the hidden states' gradient belong to one token each, so ranges are orthogonal."""
    hidden = states.hidden.detach().requires_grad_()
    output = linear_cross_entropy(hidden, states.weight, states.labels)
    (gradient,) = torch.autograd.grad(output.loss_sum, hidden)
    squares = gradient.double().square().sum(1).cpu()
    return np.diag((inside.double() @ squares).numpy())


def _head_products(states: _States, inside: Tensor) -> np.ndarray:
    weight = states.weight.detach().requires_grad_()

    def gradient(rows: Tensor) -> list[Tensor]:
        # Only the range's own rows are computed, so that all ranges together cost one pass.
        rows = rows.to(states.hidden.device)
        output = linear_cross_entropy(states.hidden[rows], weight, states.labels[rows])
        return list(torch.autograd.grad(output.loss_sum, weight))

    return _products([gradient(rows) for rows in inside])


def _model_products(subject: Subject, batches: Sequence[Batch], ranges: Sequence[Range]) -> np.ndarray:
    parameters = [p for p in subject.model.decoder.parameters() if p.requires_grad]

    def gradient(select: Select) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in parameters]
        for batch in batches:
            output = subject.model(batch.tokens, batch.labels, batch.positions, batch.mask, select)
            for so_far, new in zip(total, torch.autograd.grad(output.loss_sum, parameters), strict=True):
                so_far += new
        return total

    return _products([gradient(part.select) for part in ranges])


def _products(gradients: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """Inner products of every two gradients, in float64 for the sums over tensors."""
    count = len(gradients)
    products = np.zeros((count, count))
    for i in range(count):
        for j in range(i + 1):
            dots = (float(torch.dot(a.flatten(), b.flatten())) for a, b in zip(gradients[i], gradients[j], strict=True))
            products[i, j] = products[j, i] = sum(dots)
    return products
