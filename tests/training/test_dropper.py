"""What a rule compares when it looks at remembered values, and how strongly it drops when strength is adaptive."""

import math

import numpy as np
import pytest
import torch

from entrodrop_tune.data import Sample, collate
from entrodrop_tune.method import LossOutput
from entrodrop_tune.training.config import EntroDropConfig
from entrodrop_tune.training.distributed import World
from entrodrop_tune.training.dropper import TokenDropper
from entrodrop_tune.training.validation import SampleScores

WORLD = World(rank=0, size=1, device=torch.device("cpu"))
LENGTHS = (9, 14)
SAMPLES = [
    Sample(id=7 + i, tokens=np.arange(1, n + 1, dtype=np.int32), is_target=np.arange(n) >= 2)
    for i, n in enumerate(LENGTHS)
]
BATCH = collate([(sample,) for sample in SAMPLES], pad_id=0)
TARGETS = BATCH.labels != -100


def dropper(**config) -> TokenDropper:
    values = {"preset": "constant", "drop_rate": 1.0, "threshold": {"quantile": 0.5}, **config}
    return TokenDropper(EntroDropConfig(**values), seed=0, epochs=4, total_steps=4, replacement_id=0)


def values(seed: int) -> torch.Tensor:
    return torch.rand(BATCH.labels.shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def output(entropy: torch.Tensor, nll: torch.Tensor, targets: torch.Tensor = TARGETS) -> LossOutput:
    ones = targets.flatten()
    entropy, nll = (x.flatten().masked_fill(~ones, torch.nan) for x in (entropy, nll))
    zero = torch.tensor(0.0)
    return LossOutput(zero, ones.sum(), ones.sum(), ones.sum(), entropy, nll, ones, ones.float(), None)


def before_training(part: TokenDropper, entropy: torch.Tensor, nll: torch.Tensor) -> None:
    scores = []
    for row, _ in enumerate(SAMPLES):
        at = TARGETS[row]
        scores.append(
            SampleScores(
                positions=BATCH.positions[row][at].numpy(),
                nll=nll[row][at].double().numpy(),
                entropy=entropy[row][at].double().numpy(),
                correct=np.ones(int(at.sum()), dtype=bool),
            )
        )
    part.prefill(SAMPLES, scores)


def epoch(part: TokenDropper, number: int, entropy: torch.Tensor, nll: torch.Tensor) -> torch.Tensor:
    """One step that is one epoch; which targets the rule drops, bool ``[B, T]``."""
    part.begin_step(number, number)
    rows = TARGETS.flatten().nonzero().squeeze(1)
    dropped = torch.zeros(TARGETS.numel(), dtype=torch.bool)
    dropped[rows] = part.rule(BATCH)(entropy.flatten()[rows], nll.flatten()[rows], rows) == 0
    part.observe(BATCH, output(entropy, nll))
    part.commit(WORLD)
    part.end_epoch(WORLD)
    return dropped.view(TARGETS.shape)


def lower_half(statistic: torch.Tensor) -> torch.Tensor:
    """Targets below the median of all targets' fp16 values, by brute force."""
    rounded = statistic.half().float()
    ranked = rounded[TARGETS].sort().values
    return TARGETS & (rounded < ranked[len(ranked) // 2])


@pytest.mark.parametrize("source", ["live", "average", "base"])
def test_source_says_whose_values_are_compared(source):
    part = dropper(source=source, site="both")
    first, second, third = values(1), values(2), values(3)
    before_training(part, first, values(9))
    assert torch.equal(epoch(part, 0, second, values(8)), lower_half(first))
    expected = {"live": second, "average": (first.half() + second.half()) / 2, "base": first}[source]
    assert torch.equal(epoch(part, 1, third, values(8)), lower_half(expected))


def test_input_site_corrupts_exactly_the_dropped_targets():
    part = dropper(site="input")
    before_training(part, values(1), values(9))
    part.begin_step(0, 0)
    dropped = lower_half(values(1))
    expected = BATCH.tokens.clone()
    expected[:, 1:][dropped[:, :-1]] = 0
    assert torch.equal(part.corrupt(BATCH), expected) and part.select(BATCH) is None


def test_fitted_remembers_the_larger_of_entropy_and_loss():
    part = dropper(select="fitted", site="input")
    before_training(part, values(1), values(2))
    assert torch.equal(epoch(part, 0, values(5), values(6)), lower_half(torch.maximum(values(1), values(2))))


def test_scope_sample_takes_the_lower_half_of_each_sample():
    part = dropper(scope="sample")
    statistic = values(1)
    statistic[1] += 100.0  # by the run's quantile, no token of this sample would go
    before_training(part, statistic, values(9))
    dropped = epoch(part, 0, values(5), values(6))
    for row, _ in enumerate(SAMPLES):
        own = statistic[row][TARGETS[row]].half()
        below = (own.unsqueeze(0) < own.unsqueeze(1)).float().mean(1)  # fraction of the sample's tokens below each
        assert torch.equal(dropped[row][TARGETS[row]], below < 0.5)


def test_strength_follows_the_gap_between_validation_and_training():
    part = dropper(full_at_gap=0.5, drop_rate=0.8)
    rates = []
    for number, validation in enumerate([1.0, 1.25, 3.0, 0.2]):
        part.begin_step(number, number)
        rates.append(part.drop_rate)
        part.observe(BATCH, output(values(1), torch.ones_like(values(1))))
        part.commit(WORLD)
        part.see_validation(validation)
    part.begin_step(3, 3)
    rates.append(part.drop_rate)
    # No validation yet; gap 0; half of 0.5; above it; below 0.
    assert rates == pytest.approx([0.0, 0.0, 0.4, 0.8, 0.0])


def test_a_skipped_step_leaves_the_strength_finite():
    part = dropper(full_at_gap=0.5, drop_rate=0.8)
    broken = torch.ones_like(values(1))
    broken[0] = torch.nan
    for nll in (broken, torch.ones_like(broken)):
        part.observe(BATCH, output(values(1), nll))
        part.commit(WORLD)
    part.see_validation(1.25)
    assert part.gap == pytest.approx(0.25), "over the tokens that could be measured"
    part.observe(BATCH, output(values(1), broken))
    part.commit(WORLD)
    part.see_validation(math.nan)
    part.begin_step(1, 1)
    assert part.drop_rate == pytest.approx(0.4), "the last gap that is a number"


@pytest.mark.parametrize("scope", ["run", "sample"])
def test_a_sample_twice_in_one_packed_row_is_remembered_once(scope):
    """As with ``weight: 2`` and packing: each copy is dropped by what the sample alone would be remembered by."""
    first, second = SAMPLES
    row = collate([(first, second, first)], pad_id=0)
    pieces = [(0, 0, 9), (1, 9, 23), (0, 23, 32)]

    def packed(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[sample, : end - start] for sample, start, end in pieces]).unsqueeze(0)

    kept = []
    for batch, laid_out in ((BATCH, lambda values: values), (row, packed)):
        part = dropper(source="average", scope=scope)
        before_training(part, values(1), values(9))
        part.observe(batch, output(laid_out(values(2)), laid_out(values(3)), batch.labels != -100))
        part.end_epoch(WORLD)
        part.begin_step(1, 1)
        rows = torch.arange(batch.labels.numel())
        kept.append(part.rule(batch)(rows, rows, rows).view(batch.labels.shape))
    assert torch.equal(kept[1], packed(kept[0])) and not kept[1].all()


@pytest.mark.parametrize("config", [{"source": "average"}, {"full_at_gap": 1.0}, {"scope": "sample", "site": "both"}])
def test_state_comes_back(config):
    one, other = dropper(**config), dropper(**config)
    before_training(one, values(1), values(2))
    epoch(one, 0, values(3), values(4))
    one.see_validation(1.5)
    one.begin_step(1, 1)
    one.observe(BATCH, output(values(5), values(6)))
    one.commit(WORLD)
    other.load_state_dict(one.state_dict(WORLD))
    one.see_validation(1.7)
    other.see_validation(1.7)
    assert other.gap == one.gap and math.isfinite(one.gap)
    one.end_epoch(WORLD)
    other.end_epoch(WORLD)
    assert torch.equal(epoch(one, 2, values(7), values(8)), epoch(other, 2, values(7), values(8)))
