"""Masks depend on a token's identity alone; rates are what they say; rivals' weights are their papers' formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from entrodrop_tune.method import SELECTION_MODES, TokenSelector, linear_cross_entropy, token_entropy
from tests.method.problems import problem

N = 60
IDS = torch.arange(N) // 13 + 2**40
POSITIONS = torch.arange(N) % 13


def run(mode: str, order=None, *, epoch=0, threshold=2.0, rate=0.6, seed=0, chunk=None, fraction=0.5, **options):
    h, w, y = problem(N, seed=3)
    order = torch.arange(N) if order is None else order
    select = (
        TokenSelector(mode, seed, **options).at(epoch, threshold, rate, fraction).bind(IDS[order], POSITIONS[order])
    )
    return linear_cross_entropy(h[order], w, y[order], select, chunk_size=chunk)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SELECTION_MODES), st.permutations(range(N)), st.integers(1, N - 1), st.integers(1, N))
def test_mask_is_invariant_to_order_split_and_chunks(mode, order, cut, chunk):
    whole = run(mode).weights
    order = torch.tensor(order)
    for part in (order[:cut], order[cut:]):
        assert torch.allclose(run(mode, part, chunk=chunk).weights, whole[part], rtol=1e-9)


@pytest.mark.parametrize("mode", ["entropy", "loss", "random"])
def test_epoch_and_seed_draw_other_tokens(mode):
    first = run(mode, threshold=100.0, fraction=1.0).keep
    assert torch.equal(first, run(mode, threshold=100.0, fraction=1.0).keep)
    assert not torch.equal(first, run(mode, threshold=100.0, fraction=1.0, epoch=1).keep)
    assert not torch.equal(first, run(mode, threshold=100.0, fraction=1.0, seed=1).keep)


@pytest.mark.parametrize("mode", ["entropy", "loss"])
def test_exactly_the_candidates_below_the_threshold(mode):
    plain = run("none")
    value = plain.entropy if mode == "entropy" else plain.nll
    threshold = float(value.nanmedian())
    out = run(mode, rate=1.0, threshold=threshold)
    assert torch.equal(out.keep, ~value.isnan() & (value >= threshold)) and 0 < int(out.kept) < int(out.valid)
    assert int(run(mode, rate=0.0).kept) == int(out.valid)
    assert int(run(mode, threshold=None, rate=1.0).kept) == int(out.valid)


def test_higher_rate_drops_a_superset():
    low, high = (run("entropy", rate=rate).keep for rate in (0.3, 0.7))
    assert bool((high <= low).all()) and int(high.sum()) < int(low.sum())


def test_random_drops_as_many_as_entropy_would():
    n, q, rate = 40_000, 0.4, 0.7
    entropy = torch.rand(n, generator=torch.Generator().manual_seed(0))
    ids, rows = torch.arange(n), torch.arange(n)
    kept = {}
    for mode in ("entropy", "random"):
        select = TokenSelector(mode, 5).at(0, q, rate, q).bind(ids, torch.zeros_like(ids))
        kept[mode] = select(entropy, entropy, rows)
        dropped = 1 - float(kept[mode].double().mean())
        assert abs(dropped - q * rate) < 4 * math.sqrt(q * rate * (1 - q * rate) / n)
    low = entropy < q
    assert bool(kept["entropy"][~low].all()) and not bool(kept["random"][~low].all())
    undecided = TokenSelector("random").at(0, None, rate, None).bind(ids, ids)
    assert bool(undecided(entropy, entropy, rows).all())


def weighted(mode: str, threshold=None, drop_rate=0.5, **options):
    h, w, y = problem(40, dim=16, vocab=300, seed=1)
    rows = torch.arange(40)
    select = TokenSelector(mode, **options).at(0, threshold, drop_rate).bind(rows, rows)
    out = linear_cross_entropy(h, w, y, select, chunk_size=11)
    out.loss_sum.backward()
    return out, (h @ w.T).detach().requires_grad_(), h, w, y


def assert_same_loss_and_gradients(out, reference_sum, h, w, logits):
    (grad_logits,) = torch.autograd.grad(reference_sum, logits)
    assert torch.allclose(out.loss_sum, reference_sum, rtol=1e-6)
    assert torch.allclose(h.grad, grad_logits @ w.detach(), rtol=1e-6, atol=1e-9)
    assert torch.allclose(w.grad, grad_logits.T @ h.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("mode", "divisor"), [("eaft_llamafactory", 3.0), ("eaft_axolotl", 1.0)])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_eaft_is_nll_times_top_20_entropy_to_the_alpha(mode, divisor, alpha):
    out, logits, h, w, y = weighted(mode, alpha=alpha)
    top_p = logits.detach().topk(20, dim=1).values.softmax(1)
    weights = (-(top_p * top_p.log()).sum(1) / divisor) ** alpha
    nll = F.cross_entropy(logits, y, reduction="none", ignore_index=-100)
    assert_same_loss_and_gradients(out, (nll * weights).sum(), h, w, logits)
    assert torch.allclose(out.weights[y >= 0], weights[y >= 0], rtol=1e-6)
    assert torch.allclose(out.entropy[y >= 0], token_entropy(logits)[y >= 0]), "the output keeps the full entropy"


def test_dft_is_nll_times_the_detached_label_probability():
    out, logits, h, w, y = weighted("dft")
    log_p = logits.log_softmax(1).gather(1, y.clamp(min=0).unsqueeze(1)).squeeze(1)
    loss = -(log_p.exp().detach() * log_p)[y >= 0].sum()
    assert_same_loss_and_gradients(out, loss, h, w, logits)


def test_what_the_engine_asks():
    entropy, nll = torch.tensor([1.0, 1.0, 3.0]), torch.tensor([2.0, 0.5, 4.0])
    assert TokenSelector("entropy").statistic(entropy, nll).tolist() == [1.0, 1.0, 3.0]
    assert TokenSelector("loss").statistic(entropy, nll).tolist() == [2.0, 0.5, 4.0]
    assert TokenSelector("fitted").statistic(entropy, nll).tolist() == [2.0, 1.0, 4.0]
    assert [TokenSelector(m).normalizer for m in ("entropy", "none", "soft", "eaft_axolotl", "dft")] == [
        "kept",
        "kept",
        "weight_sum",
        "valid",
        "valid",
    ]


def test_fitted_drops_what_is_low_in_entropy_and_in_loss():
    entropy, nll = torch.rand(500) * 2, torch.rand(500) * 2
    rows = torch.arange(500)
    rule = TokenSelector("fitted", seed=1).at(0, 1.0, 1.0).bind(rows, torch.zeros_like(rows))
    assert torch.equal(rule(entropy, nll, rows), ~((entropy < 1.0) & (nll < 1.0)))


def test_soft_weights_are_continuous_and_average_like_the_ramp_they_state():
    threshold = 2.0
    out, logits, h, w, y = weighted("soft", threshold, drop_rate=0.8)
    entropy = token_entropy(logits)[y >= 0]
    assert (entropy < threshold).any() and (entropy > threshold).any()
    weights = torch.where(entropy < threshold, 1 - 0.8 * (1 - entropy / threshold), 1.0)
    assert torch.allclose(out.weights[y >= 0], weights, atol=1e-5)
    nll = F.cross_entropy(logits, y, reduction="none", ignore_index=-100)
    full = torch.zeros_like(nll)
    full[y >= 0] = weights
    assert_same_loss_and_gradients(out, (nll * full.detach()).sum(), h, w, logits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenSelector("entropi"), 'mode = "entropi"'),
        (lambda: TokenSelector("eaft_axolotl", alpha=0), "alpha = 0"),
        (lambda: TokenSelector("eaft_axolotl", top_k=1), "top_k = 1"),
        (lambda: TokenSelector().at(0, 1.0, 1.2), r"drop_rate = 1\.2"),
        (lambda: TokenSelector().at(0, 1.0, 0.2, -0.1), r"candidate_fraction = -0\.1"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
