"""Which tokens count: hard drops by entropy, loss or chance, and the soft weights of rival methods."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from entrodrop_tune.method.coins import uniform_coins

DROP_MODES = ("entropy", "random", "loss")
WEIGHT_MODES = ("eaft_llamafactory", "eaft_axolotl", "dft")
SELECTION_MODES = (*DROP_MODES, "none", *WEIGHT_MODES)

# LLaMA-Factory's use_eaft_loss divides by a rounded ln 20; axolotl's use_eaft does not divide.
_EAFT_DIVISOR = {"eaft_llamafactory": 3.0, "eaft_axolotl": 1.0}


@dataclass(frozen=True)
class TokenSelector:
    """A rule, by name.

    Drops (a candidate is dropped where its coin is below the drop rate):
        ``entropy``: candidates are tokens whose entropy is below the threshold.
        ``loss``: tokens whose NLL is below the threshold.
        ``random``: every token, at a rate that drops as many as the threshold would. The control.
        ``none``: nothing is dropped.

    Weights (the NLL is multiplied by them; threshold, drop rate and coins play no part):
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
    def statistic(self) -> Literal["entropy", "nll"] | None:
        """What the threshold is a quantile of; None where no token is compared with a threshold."""
        return {"entropy": "entropy", "loss": "nll"}.get(self.mode)  # type: ignore[return-value]

    @property
    def normalizer(self) -> Literal["kept", "valid"]:
        """What to divide the summed loss by: kept tokens, or all valid ones as EAFT's and DFT's trainers do."""
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
        return ~self._dropped(entropy, nll, rows)

    def _dropped(self, entropy: Tensor, nll: Tensor, rows: Tensor) -> Tensor:
        step, mode = self.step, self.step.selector.mode
        rate = step.drop_rate
        if mode == "random":
            rate *= step.candidate_fraction or 0.0
            candidate = torch.ones_like(entropy, dtype=torch.bool)
        elif mode == "none" or step.threshold is None:
            return torch.zeros_like(entropy, dtype=torch.bool)
        else:
            candidate = (entropy if mode == "entropy" else nll) < step.threshold
        coins = uniform_coins(step.selector.seed, step.epoch, self.sample_ids[rows], self.positions[rows])
        return candidate & (coins < rate)
