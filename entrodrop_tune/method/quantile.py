"""An online quantile of token statistics (entropies or NLLs) that ranks can merge and a checkpoint can hold."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_BINS = 2048
_LOWEST, _HIGHEST = 1e-7, 100.0
_BINS_PER_E = (_BINS - 1) / math.log(_HIGHEST / _LOWEST)


class QuantileSketch:
    """A histogram over log-spaced bins, in which older tokens fade.

    A fine-tuned model's entropies pile up near 0 nats, so bins are spaced by a constant ratio (1 %) from 1e-7 to
    100; bin 0 holds everything smaller. Each microbatch calls :meth:`update`, which only collects. Once an optimizer
    step, after summing :attr:`pending` over ranks, :meth:`commit` merges what was collected; :meth:`quantile` reads
    merged tokens only. So a threshold cannot change within a step, whatever the microbatches.

    Args:
        half_life: tokens after which a token counts half. Memory steadies the estimate and makes it lag: on real
            entropies the default is off by 0.2 percentiles on average while they stand still, and too high by 7 while
            each step of 512 tokens lowers them all by 2 %.

    Attributes:
        counts: fp64 ``[bins]`` on CPU, the merged, faded counts.
        pending: fp64 ``[bins]`` on CPU, tokens since the last commit; a plain sum, so ``all_reduce`` merges ranks.
    """

    def __init__(self, half_life: float = 4096.0) -> None:
        if not half_life > 0:
            raise ValueError(f"half_life = {half_life}: must be a positive number of tokens")
        self.half_life = float(half_life)
        self.counts = torch.zeros(_BINS, dtype=torch.float64)
        self.pending = torch.zeros(_BINS, dtype=torch.float64)

    def update(self, values: Tensor) -> None:
        """Collect the finite entries of ``values`` (any shape, non-negative; ignored tokens carry nan)."""
        values = values.detach().flatten()
        values = values[values.isfinite()].to(torch.float32)
        bins = (values.clamp(min=_LOWEST) / _LOWEST).log_().mul_(_BINS_PER_E).ceil_().clamp_(max=_BINS - 1)
        self.pending += torch.bincount(bins.to(torch.int64), minlength=_BINS).to("cpu", torch.float64)

    def commit(self) -> None:
        """Merge the collected tokens, fading those already there by ``0.5 ** (new tokens / half_life)``."""
        self.counts *= 0.5 ** (float(self.pending.sum()) / self.half_life)
        self.counts += self.pending
        self.pending.zero_()

    def quantile(self, q: float) -> float | None:
        """The value below which a fraction ``q`` of the merged tokens lies; ``None`` before any token was merged.

        ``q = 0`` gives 0 (nothing is below) and ``q = 1`` gives infinity (everything is).
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q = {q}: a quantile lies in [0, 1]")
        total = float(self.counts.sum())
        if total == 0.0:
            return None
        if q in (0.0, 1.0):
            return 0.0 if q == 0.0 else math.inf
        cumulative = self.counts.cumsum(0)
        target = q * total
        index = min(int(torch.searchsorted(cumulative, target)), _BINS - 1)
        below = float(cumulative[index - 1]) if index else 0.0
        inside = (target - below) / max(float(self.counts[index]), 1e-300)
        return _LOWEST * math.exp((index - 1 + min(inside, 1.0)) / _BINS_PER_E) if index else _LOWEST * inside

    def rank(self, value: float) -> float | None:
        """The fraction of merged tokens below ``value`` (the inverse of :meth:`quantile`), or ``None`` before any."""
        total = float(self.counts.sum())
        if total == 0.0:
            return None
        if value <= 0.0:
            return 0.0
        place = math.log(value / _LOWEST) * _BINS_PER_E if value > _LOWEST else value / _LOWEST - 1.0
        index = math.ceil(place)
        if index >= _BINS:
            return 1.0
        inside = float(self.counts[index]) * (place - (index - 1))
        return (float(self.counts[:index].sum()) + inside) / total

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts.clone(), "pending": self.pending.clone(), "half_life": self.half_life}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            ValueError: the state has another number of bins.
        """
        for name in ("counts", "pending"):
            tensor = torch.as_tensor(state[name], dtype=torch.float64)
            if tensor.shape != (_BINS,):
                raise ValueError(f"{name}: expected {_BINS} bins, the saved state has {tuple(tensor.shape)}")
            setattr(self, name, tensor.clone())
        self.half_life = float(state["half_life"])
