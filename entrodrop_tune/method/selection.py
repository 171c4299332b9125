"""Which tokens count: hard drops by entropy, loss or chance, and the soft weights of rival methods."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from entrodrop_tune.method.coins import uniform_coins

DROP_MODES = ("entropy", "fitted", "random", "loss")
WEIGHT_MODES = ("soft", "eaft_llamafactory", "eaft_axolotl", "dft")
SELECTION_MODES = (*DROP_MODES, "none", *WEIGHT_MODES)

# LLaMA-Factory's use_eaft_loss divides by a rounded ln 20; axolotl's use_eaft does not divide.
_EAFT_DIVISOR = {"eaft_llamafactory": 3.0, "eaft_axolotl": 1.0}


@dataclass(frozen=True)
class TokenSelector:
    """A rule, by name.

    Drops (a candidate is dropped where its coin is below the drop rate):
        ``entropy``: candidates are tokens whose entropy is below the threshold.
        ``loss``: tokens whose NLL is below the threshold.
        ``fitted``: tokens whose entropy *and* NLL are: the model is sure, and right.
        ``random``: every token, at a rate that drops as many as the threshold would. The control.
        ``none``: nothing is dropped.

    Weights (the NLL is multiplied by them; no coins):
        ``soft``: ``1 - drop_rate * (1 - H / threshold)`` below the threshold, 1 above: ``entropy`` without its chance
        and its edge. The rules below know no threshold and no drop rate.
        ``eaft_llamafactory``, ``eaft_axolotl``: ``(H / c) ** alpha`` with H the entropy over the ``top_k`` largest
        logits (EAFT, arXiv 2601.02151), c = 3 and c = 1 as in those two trainers.
        ``dft``: the label's probability ``exp(-nll)`` (DFT, arXiv 2508.05629; TRL's ``loss_type="dft"``).

    Args:
        mode: one of :data:`SELECTION_MODES`.
        seed: of the coins.
        alpha, top_k: of EAFT.
    """

    mode: str = "entropy"
    seed: int = 0
    alpha: float = 1.0
    top_k: int = 20

    def __post_init__(self) -> None:
        if self.mode not in SELECTION_MODES:
            raise ValueError(f'mode = "{self.mode}": choose from {", ".join(SELECTION_MODES)}')
        if not self.alpha > 0:
            raise ValueError(f"alpha = {self.alpha}: must be positive")
        if self.top_k < 2:
            raise ValueError(f"top_k = {self.top_k}: must be at least 2")

    @property
    def uses_threshold(self) -> bool:
        """Whether threshold and drop rate play a part."""
        return self.mode in DROP_MODES or self.mode == "soft"

    def statistic(self, entropy: Tensor, nll: Tensor) -> Tensor:
        """What a token's threshold is compared with, and a quantile of; any shape, in nats."""
        if self.mode == "loss":
            return nll
        return torch.maximum(entropy, nll) if self.mode == "fitted" else entropy

    @property
    def normalizer(self) -> Literal["kept", "weight_sum", "valid"]:
        """What to divide the summed loss by, as an attribute of ``LossOutput``: kept tokens where tokens are dropped,
        the weights where they are soft drops, all valid tokens for EAFT and DFT, as their trainers do.
        """
        if self.mode == "soft":
            return "weight_sum"
        return "valid" if self.mode in WEIGHT_MODES else "kept"

    def at(
        self, epoch: int, threshold: float | None, drop_rate: float, candidate_fraction: float | None = None
    ) -> "StepSelector":
        """The rule frozen for one optimizer step.

        Args:
            epoch: enters the coins, so that each epoch drops other tokens.
            threshold: in nats of :attr:`statistic`; None (no estimate yet) drops nothing.
            drop_rate: probability of dropping a candidate.
            candidate_fraction: for ``random``, the fraction of tokens below the threshold that it imitates: the
                quantile, or ``QuantileSketch.rank(nats)``. None (no estimate yet) drops nothing.
        """
        if not 0.0 <= drop_rate <= 1.0:
            raise ValueError(f"drop_rate = {drop_rate}: must be in [0, 1]")
        if candidate_fraction is not None and not 0.0 <= candidate_fraction <= 1.0:
            raise ValueError(f"candidate_fraction = {candidate_fraction}: must be in [0, 1]")
        return StepSelector(self, epoch, threshold, drop_rate, candidate_fraction)


@dataclass(frozen=True)
class StepSelector:
    """A :class:`TokenSelector` with one step's threshold and drop rate."""

    selector: TokenSelector
    epoch: int
    threshold: float | None
    drop_rate: float
    candidate_fraction: float | None = None

    def bind(self, sample_ids: Tensor, positions: Tensor) -> "BoundSelector":
        """Give the rule the identity of each row: ``sample_ids [N]`` and ``positions [N]`` within the sample, int64."""
        return BoundSelector(self, sample_ids, positions)


@dataclass(frozen=True)
class BoundSelector:
    """``select(entropy [n], nll [n], rows [n]) -> [n]`` for :func:`linear_cross_entropy`: bool keep or fp32 weight."""

    step: StepSelector
    sample_ids: Tensor
    positions: Tensor

    @property
    def top_k(self) -> int | None:
        """Set where the rule wants the entropy over the largest logits only."""
        rule = self.step.selector
        return rule.top_k if rule.mode in _EAFT_DIVISOR else None

    def __call__(self, entropy: Tensor, nll: Tensor, rows: Tensor) -> Tensor:
        rule = self.step.selector
        if rule.mode == "dft":
            return torch.exp(-nll)
        if rule.mode in _EAFT_DIVISOR:
            return (entropy / _EAFT_DIVISOR[rule.mode]) ** rule.alpha
        if rule.mode == "soft":
            return self._soft(entropy)
        return ~self.dropped(rule.statistic(entropy, nll), rows)

    def dropped(self, statistic: Tensor, rows: Tensor) -> Tensor:
        """Which of ``rows`` a rule that drops tokens drops, bool ``[n]``; nan in ``statistic [n]`` is never dropped."""
        step, mode = self.step, self.step.selector.mode
        rate = step.drop_rate
        if mode == "random":
            rate *= step.candidate_fraction or 0.0
            candidate = statistic.isfinite()
        elif mode == "none" or step.threshold is None:
            return torch.zeros_like(statistic, dtype=torch.bool)
        else:
            candidate = statistic < step.threshold
        coins = uniform_coins(step.selector.seed, step.epoch, self.sample_ids[rows], self.positions[rows])
        return candidate & (coins < rate)

    def _soft(self, entropy: Tensor) -> Tensor:
        threshold = self.step.threshold
        if not threshold:  # no estimate yet, or nothing below it
            return torch.ones_like(entropy)
        return 1 - self.step.drop_rate * (1 - entropy / threshold).clamp(min=0)
