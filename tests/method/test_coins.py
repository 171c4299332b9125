import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrodrop_tune.method import uniform_coins

WORD = 2**64


def reference(seed: int, epoch: int, sample_id: int, position: int) -> float:
    """The published SplitMix64 step on Python integers, chained over the keys."""

    def finalise(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    key = finalise((finalise((seed + golden) % WORD) + epoch + golden) % WORD)
    word = finalise((finalise((sample_id + key) % WORD) + position * golden) % WORD)
    return (word >> 40) / 2**24


@given(
    st.integers(-(2**70), 2**70),
    st.integers(0, 10_000),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**20),
)
def test_matches_integer_arithmetic(seed, epoch, sample_id, position):
    got = uniform_coins(seed, epoch, torch.tensor([sample_id]), torch.tensor([position]))
    assert float(got) == reference(seed, epoch, sample_id, position)


@given(st.permutations(range(40)), st.integers(1, 39))
def test_independent_of_order_and_split(order, cut):
    ids = torch.arange(40) // 7 * 1_000_003
    positions = torch.arange(40) % 7
    whole = uniform_coins(1, 2, ids, positions)
    order = torch.tensor(order)
    parts = [uniform_coins(1, 2, ids[part], positions[part]) for part in (order[:cut], order[cut:])]
    assert torch.equal(torch.cat(parts), whole[order])


def test_uniform_and_uncorrelated():
    ids, positions = torch.arange(500).unsqueeze(1), torch.arange(400).unsqueeze(0)
    coins = uniform_coins(0, 0, ids, positions).double()
    n = coins.numel()
    assert coins.min() >= 0 and coins.max() < 1
    counts = torch.histc(coins, 64, 0, 1)
    chi2 = float(((counts - n / 64) ** 2 / (n / 64)).sum())
    assert abs(chi2 - 63) < 5 * math.sqrt(2 * 63)
    centred = coins - 0.5
    others = [uniform_coins(0, 1, ids, positions), uniform_coins(1, 0, ids, positions)]
    lagged = [(centred[:-1], centred[1:]), (centred[:, :-1], centred[:, 1:])]
    lagged += [(centred, other.double() - 0.5) for other in others]
    for a, b in lagged:
        assert abs(float((a * b).mean()) * 12) < 5 / math.sqrt(a.numel())


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_zero_and_one_are_certain(rate):
    coins = uniform_coins(3, 0, torch.arange(10_000), torch.zeros(10_000, dtype=torch.int64))
    assert bool((coins < rate).all()) is bool(rate)
