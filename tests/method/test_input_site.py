import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from entrodrop_tune.method import EntropyCache, corrupt_tokens


def test_the_predicted_token_is_replaced_and_the_first_never():
    tokens = torch.tensor([[10, 11, 12, 13], [20, 21, 22, 23]])
    drop = torch.tensor([[True, False, True, True], [False, False, False, True]])
    # Row t of `drop` is about predicting token t + 1; the last row's target lies outside the input.
    assert corrupt_tokens(tokens, drop, 0).tolist() == [[10, 0, 12, 0], [20, 21, 22, 23]]
    assert corrupt_tokens(tokens, drop, tokens + 100).tolist() == [[10, 111, 12, 113], [20, 21, 22, 23]]
    assert torch.equal(corrupt_tokens(tokens.int(), drop & False, 0), tokens.int())
    assert corrupt_tokens(tokens.int(), drop, 0).dtype == torch.int32
    with pytest.raises(ValueError, match="drop must be bool"):
        corrupt_tokens(tokens, drop[:, 1:], 0)


@pytest.mark.parametrize("limit", [2**20, 0], ids=["memory", "disk"])
def test_remembers_the_last_value(limit, tmp_path):
    cache = EntropyCache(tmp_path, memory_limit=limit)
    assert cache.get(7) is None, "epoch 0 knows nothing"
    samples = {i * 2**50: torch.rand(i % 9 + 1) * 10 for i in range(1, 3000)}
    for sample_id, values in samples.items():
        cache.put(sample_id, torch.zeros_like(values))
    for sample_id, values in samples.items():
        cache.put(sample_id, values)
    assert len(cache) == len(samples) and cache.on_disk is (limit == 0)
    for sample_id, values in samples.items():
        assert torch.equal(cache.get(sample_id), values.half().float())
    assert 2**50 in cache and 1 not in cache
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == (1 if limit == 0 else 0)


def test_keeps_nan_where_nothing_is_predicted():
    cache = EntropyCache()
    cache.put(1, torch.tensor([math.nan, 0.5, math.nan]))
    assert cache.get(1).isnan().tolist() == [True, False, True]


def test_an_id_names_one_content():
    cache = EntropyCache()
    cache.put(1, torch.zeros(3))
    with pytest.raises(ValueError, match="sample 1: 4 entropies, but 3"):
        cache.put(1, torch.zeros(4))


@pytest.mark.parametrize("limit", [2**20, 0], ids=["memory", "disk"])
def test_state_goes_through_safetensors(limit, tmp_path):
    cache = EntropyCache(memory_limit=limit)
    for i in range(50):
        cache.put(i * 12345678901, torch.rand(i + 1))
    save_file(cache.state_dict(), tmp_path / "cache.safetensors")
    other = EntropyCache()
    other.put(99, torch.ones(2))
    other.load_state_dict(load_file(tmp_path / "cache.safetensors"))
    assert len(other) == 50 and 99 not in other
    assert all(torch.equal(other.get(i * 12345678901), cache.get(i * 12345678901)) for i in range(50))


def test_a_damaged_state_is_refused():
    cache = EntropyCache()
    cache.put(1, torch.rand(5))
    state = cache.state_dict()
    state["values"][2] += 1
    with pytest.raises(ValueError, match="damaged"):
        EntropyCache().load_state_dict(state)
    EntropyCache().load_state_dict(EntropyCache().state_dict())


def test_quantile_and_rank_are_exact_and_follow_what_is_put():
    cache = EntropyCache()
    assert cache.quantile(0.5) is None and cache.rank(1.0) is None
    for sample in range(5):
        values = torch.rand(37, generator=torch.Generator().manual_seed(sample)) * 3
        values[::4] = torch.nan
        cache.put(sample, values)
        known = torch.cat([cache.get(i) for i in range(sample + 1)])
        known = known[known.isfinite()]
        for q in (0.0, 0.3, 0.5, 0.99):
            below = float((known < cache.quantile(q)).float().mean())
            assert q - 1 / known.numel() <= below <= q
        assert cache.quantile(1.0) == math.inf
        assert cache.rank(1.25) == pytest.approx(float((known < 1.25).float().mean()))
