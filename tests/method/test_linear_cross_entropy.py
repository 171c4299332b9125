"""The fused loss against float64 brute force: values, gradients, and what dropped rows must not do."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from entrodrop_tune.method import SELECTION_MODES, TokenSelector, linear_cross_entropy
from entrodrop_tune.method import tiles as tiles_module
from tests.method import oracle
from tests.method.problems import fixed, problem, relative


@pytest.fixture(params=[7, 2048], ids=["many tiles", "one tile"])
def tile(request, monkeypatch):
    monkeypatch.setattr(tiles_module, "CPU_TILE", request.param)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    vocab=st.integers(2, 60),
    chunk=st.integers(1, 45),
    tile=st.integers(1, 64),
    ignored=st.integers(0, 4),
    soft=st.booleans(),
    drop=st.sampled_from([0.0, 0.5, 1.0]),
    smoothing=st.sampled_from([0.0, 0.2]),
    z_loss=st.sampled_from([0.0, 0.01]),
    seed=st.integers(0, 1000),
)
def test_value_and_gradients_equal_brute_force(rows, vocab, chunk, tile, ignored, soft, drop, smoothing, z_loss, seed):
    h, w, y = problem(rows, vocab=vocab, ignored=ignored, seed=seed)
    coins = torch.rand(rows, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    row_weights = (coins >= drop) * (coins if soft else torch.ones_like(coins))
    select = fixed(row_weights if soft else row_weights.bool())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles_module, "CPU_TILE", tile)
        out = linear_cross_entropy(h, w, y, select, chunk_size=chunk, label_smoothing=smoothing, z_loss=z_loss)
        out.loss_sum.backward()
    loss, grad_h, grad_w = oracle.gradients(h, w, y, row_weights, label_smoothing=smoothing, z_loss=z_loss)
    assert torch.allclose(out.loss_sum, loss, rtol=1e-12, atol=1e-12)
    assert torch.allclose(h.grad, grad_h, rtol=1e-10, atol=1e-12)
    assert torch.allclose(w.grad, grad_w, rtol=1e-10, atol=1e-12)
    valid = y >= 0
    assert int(out.valid) == int(valid.sum())
    assert int(out.kept) == int((valid & (row_weights > 0)).sum())
    assert float(out.weight_sum) == pytest.approx(float(row_weights[valid].sum()))
    assert torch.equal(out.keep, valid & (row_weights > 0))


def test_gradcheck(tile):
    h, w, y = problem(9, dim=4, vocab=11)
    row_weights = torch.rand(9, dtype=torch.float64)

    def loss(h, w):
        out = linear_cross_entropy(h, w, y, fixed(row_weights), chunk_size=4, label_smoothing=0.1, z_loss=0.02)
        return out.loss_sum

    assert torch.autograd.gradcheck(loss, (h, w))


def test_statistics_equal_brute_force(tile):
    h, w, y = problem(scale=3.0)
    out = linear_cross_entropy(h, w, y, chunk_size=10, with_accuracy=True)
    logits = (h @ w.T).detach()
    valid = y >= 0
    assert torch.allclose(out.entropy[valid], oracle.entropy(logits)[valid], rtol=1e-9, atol=1e-12)
    assert torch.allclose(out.nll[valid], F.cross_entropy(logits, y, reduction="none")[valid])
    assert torch.equal(out.correct, valid & (logits.argmax(1) == y))
    assert out.entropy[~valid].isnan().all() and out.nll[~valid].isnan().all() and not out.keep[~valid].any()
    assert not any(t.requires_grad for t in out[1:])
    assert linear_cross_entropy(h, w, y).correct is None


def test_drop_zero_is_plain_cross_entropy_and_otherwise_that_over_kept_tokens():
    h, w, y = problem(64, ignored=6)
    plain = linear_cross_entropy(h, w, y, chunk_size=10)
    assert torch.allclose(plain.loss_sum / plain.valid, F.cross_entropy(h @ w.T, y))
    keep = torch.rand(64, generator=torch.Generator().manual_seed(0)) < 0.4
    dropped = linear_cross_entropy(h, w, y, fixed(keep), chunk_size=10)
    assert torch.allclose(dropped.loss_sum / dropped.kept, F.cross_entropy(h @ w.T, y.masked_fill(~keep, -100)))


def test_no_gradient_at_dropped_or_ignored_positions():
    h, w, y = problem(50)
    keep = torch.arange(50) % 3 > 0
    linear_cross_entropy(h, w, y, fixed(keep), chunk_size=8).loss_sum.backward()
    counted = keep & (y >= 0)
    assert torch.equal(h.grad.abs().sum(1) > 0, counted)
    # The weight's gradient is that of the kept rows alone: what the others hold does not matter.
    w2 = w.detach().clone().requires_grad_()
    other = torch.where(counted.unsqueeze(1), h.detach(), torch.randn(50, 8, dtype=torch.float64) * 5)
    linear_cross_entropy(other, w2, y, fixed(keep), chunk_size=8).loss_sum.backward()
    assert torch.equal(w.grad, w2.grad)


def test_select_sees_valid_rows_once_with_their_own_statistics():
    h, w, y = problem(50)
    seen = []

    def select(entropy, nll, rows):
        seen.append((entropy, nll, rows))
        return entropy > 2.0

    out = linear_cross_entropy(h, w, y, select, chunk_size=8)
    entropy, nll, rows = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert torch.equal(rows, (y >= 0).nonzero().squeeze(1))
    assert torch.equal(entropy, out.entropy[rows]) and torch.equal(nll, out.nll[rows])
    assert torch.equal(out.keep[rows], entropy > 2.0)
    assert not entropy.requires_grad


@pytest.mark.parametrize("cause", ["all dropped", "all ignored", "no rows"])
def test_nothing_kept_is_zero_and_flagged(cause):
    h, w, y = problem(0 if cause == "no rows" else 20, ignored=1 if cause == "all ignored" else 0)
    out = linear_cross_entropy(h, w, y, fixed(torch.zeros(20, dtype=torch.bool)))
    out.loss_sum.backward()
    assert float(out.loss_sum.detach()) == 0.0 and int(out.kept) == 0
    assert int(out.valid) == (20 if cause == "all dropped" else 0)
    assert torch.equal(h.grad, torch.zeros_like(h)) and torch.equal(w.grad, torch.zeros_like(w))


@pytest.mark.parametrize("trainable", ["hidden", "weight", "both", "neither"])
def test_only_what_requires_a_gradient_gets_one(trainable):
    h, w, y = problem()
    h.requires_grad_(trainable in ("hidden", "both"))
    w.requires_grad_(trainable in ("weight", "both"))
    out = linear_cross_entropy(h, w, y, chunk_size=10)
    assert out.loss_sum.requires_grad is (trainable != "neither")
    _, grad_h, grad_w = oracle.gradients(h, w, y, (y >= 0).double())
    if trainable != "neither":
        out.loss_sum.backward()
    for tensor, expected in ((h, grad_h), (w, grad_w)):
        assert (tensor.grad is None) is (not tensor.requires_grad)
        if tensor.grad is not None:
            assert torch.allclose(tensor.grad, expected)


def test_a_frozen_weight_costs_no_weight_gradient(monkeypatch):
    h, w, y = problem(dtype=torch.float32)
    products = []
    monkeypatch.setattr(torch, "mm", lambda a, b, out, mm=torch.mm: (products.append(out.shape), mm(a, b, out=out))[1])
    linear_cross_entropy(h, w.detach(), y)
    assert (50, 8) not in products, "no [V, D] product"
    with torch.no_grad():
        products.clear()
        linear_cross_entropy(h, w, y)
    assert all(shape[1] == 50 for shape in products), "forward products only"


@pytest.mark.parametrize("upstream", [1.0, 0.25, -3.0, 0.0])
def test_any_upstream_gradient(upstream):
    h, w, y = problem()
    (linear_cross_entropy(h, w, y).loss_sum * upstream).backward()
    _, grad_h, grad_w = oracle.gradients(h, w, y, (y >= 0).double())
    assert torch.allclose(h.grad, upstream * grad_h) and torch.allclose(w.grad, upstream * grad_w)


def test_two_backwards_need_retain_graph():
    h, w, y = problem()
    loss = linear_cross_entropy(h, w, y).loss_sum
    first = torch.autograd.grad(loss, (h, w), torch.tensor(2.0, dtype=torch.float64), retain_graph=True)
    second = torch.autograd.grad(loss, (h, w), torch.tensor(3.0, dtype=torch.float64))
    for a, b in zip(first, second, strict=True):
        assert torch.allclose(a * 1.5, b)
    with pytest.raises(RuntimeError, match="retain_graph"):
        torch.autograd.grad(loss, (h, w))


def test_tied_embedding_and_gradient_accumulation():
    embedding = nn.Embedding(50, 8, dtype=torch.float64)
    tokens, labels = torch.randint(50, (2, 30)), torch.randint(50, (2, 30))

    def reference(weight):
        hidden = F.embedding(tokens, weight).flatten(0, 1)
        return F.cross_entropy(hidden @ weight.T, labels.flatten(), reduction="sum")

    weight = embedding.weight.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(reference(weight), weight)
    for row in range(2):  # two microbatches
        linear_cross_entropy(embedding(tokens[row]), embedding.weight, labels[row], chunk_size=7).loss_sum.backward()
    assert torch.allclose(embedding.weight.grad, expected)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(24)), st.integers(1, 23), st.integers(1, 30))
def test_sums_do_not_depend_on_order_or_split(order, cut, chunk):
    h, w, y = problem(24)
    row_weights = torch.rand(24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    whole = linear_cross_entropy(h, w, y, fixed(row_weights))
    order = torch.tensor(order)
    total = 0.0
    for part in (order[:cut], order[cut:]):
        total = total + linear_cross_entropy(h[part], w, y[part], fixed(row_weights[part]), chunk_size=chunk).loss_sum
    assert torch.allclose(whole.loss_sum, total)
    got, expected = torch.autograd.grad(total, h)[0], torch.autograd.grad(whole.loss_sum, h)[0]
    assert torch.allclose(got, expected)


def test_deterministic():
    def run():
        h, w, y = problem(300, dim=32, vocab=3000, dtype=torch.float32)
        out = linear_cross_entropy(h, w, y, chunk_size=64)
        out.loss_sum.backward()
        return out.loss_sum, out.entropy[y >= 0], h.grad, w.grad

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"hidden": p.hidden.unsqueeze(0)}, "hidden must be"),
        (lambda p: {"weight": p.weight[:, :3]}, "weight"),
        (lambda p: {"labels": p.labels[:-1]}, "labels must be int64"),
        (lambda p: {"labels": p.labels.int()}, "labels must be int64"),
        (lambda p: {"labels": p.labels + 50}, "outside the vocabulary of 50"),
        (lambda p: {"chunk_size": 0}, "chunk_size = 0"),
        (lambda p: {"label_smoothing": 1.0}, r"label_smoothing = 1\.0"),
        (lambda p: {"select": lambda e, n, r: e[:-1] > 0}, "select must return"),
        (lambda p: {"select": lambda e, n, r: r}, "select must return"),
        (lambda p: {"select": lambda e, n, r: -e}, "negative or nan"),
        (lambda p: {"select": lambda e, n, r: e * torch.nan}, "negative or nan"),
    ],
)
def test_refusals(change, message):
    p = problem()
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**p._asdict(), **change(p)})


@pytest.mark.parametrize("mode", SELECTION_MODES)
def test_a_broken_row_shows_in_the_loss_whatever_the_rule(mode):
    """One row of nan, as a diverged model gives: the caller is to see it, and decide."""
    hidden, weight, labels = torch.randn(6, 4), torch.randn(9, 4), torch.arange(6)
    hidden[2] = torch.nan
    rule = TokenSelector(mode).at(0, threshold=1.0, drop_rate=0.5, candidate_fraction=0.5)
    select = rule.bind(torch.arange(6), torch.arange(6))
    output = linear_cross_entropy(hidden.requires_grad_(), weight, labels, select)
    output.loss_sum.backward()
    assert output.loss_sum.isnan() and output.keep[2] and hidden.grad[2].isnan().all()
    assert hidden.grad[[0, 1, 3, 4, 5]].isfinite().all()


def test_ignore_index_is_configurable():
    h, w, y = problem(ignored=0)
    out = linear_cross_entropy(h, w, y, ignore_index=int(y[0]))
    assert int(out.valid) == int((y != y[0]).sum()) and out.entropy[y == y[0]].isnan().all()


def test_extreme_logits_stay_finite():
    h, w, y = problem(dtype=torch.float32, scale=200.0)
    out = linear_cross_entropy(h, w, y)
    out.loss_sum.backward()
    assert all(bool(t.isfinite().all()) for t in (out.loss_sum, h.grad, w.grad, out.entropy[y >= 0]))
    _, grad_h, _ = oracle.gradients(h, w, y, (y >= 0).double())
    assert relative(h.grad, grad_h) < 1e-4
