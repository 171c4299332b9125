"""Low precision, autocast, torch.compile, and memory."""

import pytest
import torch

from entrodrop_tune.method import linear_cross_entropy
from tests.method import oracle
from tests.method.problems import fixed, problem, relative

# Relative errors of the gradients, in Frobenius norm. A dtype with m bits after the leading one rounds by at most
# 2^-(m+1), here in three places: logits, probabilities and scaled inputs, the result.
GRADIENT_BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}


@pytest.mark.parametrize("dtype", GRADIENT_BOUNDS, ids=str)
@pytest.mark.parametrize("dropped", [False, True])
def test_error_bounds(dtype, dropped):
    """Against float64 on the same (already rounded) inputs.

    A logit z is off by at most d = |z| 2^-(m+1); then, to first order, the NLL is off by at most 2 d and the entropy by
    d sum p |ln p + H|.
    """
    h, w, y = problem(256, dim=64, vocab=3000, dtype=dtype, scale=0.4)
    keep = torch.rand(256, generator=torch.Generator().manual_seed(1)) < (0.5 if dropped else 2.0)
    out = linear_cross_entropy(h, w, y, fixed(keep))
    out.loss_sum.backward()
    row_weights = (keep & (y >= 0)).double()
    _, grad_h, grad_w = oracle.gradients(h, w, y, row_weights)
    assert h.grad.dtype == w.grad.dtype == dtype and out.entropy.dtype == out.loss_sum.dtype == torch.float32
    assert relative(h.grad, grad_h) < GRADIENT_BOUNDS[dtype]
    assert relative(w.grad, grad_w) < GRADIENT_BOUNDS[dtype]
    valid = y >= 0
    logits = (h.detach().double() @ w.detach().double().T)[valid]
    log_p = logits.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    off = logits.abs().amax(1) * 2.0 ** -(BITS[dtype] + 1) + 2e-6  # fp32 sums
    nll = -log_p.gather(1, y[valid].unsqueeze(1)).squeeze(1)
    assert bool(((out.nll[valid] - nll).abs() <= 2 * off).all())
    sensitivity = (log_p.exp() * (log_p + entropy.unsqueeze(1)).abs()).sum(1)
    assert bool(((out.entropy[valid] - entropy).abs() <= 1.1 * off * sensitivity + 2e-6).all())


def test_mixed_precision_keeps_the_weight_gradient_in_fp32():
    h, w, y = problem(256, dim=64, vocab=3000, dtype=torch.float32, scale=0.4)
    hidden = h.detach().bfloat16().requires_grad_()
    linear_cross_entropy(hidden, w, y, chunk_size=64).loss_sum.backward()
    assert hidden.grad.dtype == torch.bfloat16 and w.grad.dtype == torch.float32
    _, grad_h, grad_w = oracle.gradients(h, w, y, (y >= 0).double())
    assert relative(hidden.grad, grad_h) < 1e-2 and relative(w.grad, grad_w) < 1e-2


def test_autocast_runs_the_products_in_its_dtype():
    h, w, y = problem(64, dim=16, vocab=500, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = linear_cross_entropy(h, w, y)
    by_hand = linear_cross_entropy(h.bfloat16(), w, y)
    assert torch.equal(cast.loss_sum, by_hand.loss_sum) and cast.loss_sum.dtype == torch.float32
    cast.loss_sum.backward()
    assert h.grad.dtype == w.grad.dtype == torch.float32


def test_fp16_gradients_survive_a_loss_scale():
    """Probabilities times inputs of 1e-7 would round to 0 in fp16; the loss scale arrives in the backward."""
    h, w, y = problem(128, dim=16, vocab=400, dtype=torch.float16)
    scale = 2.0**12
    (linear_cross_entropy(h, w, y).loss_sum * 1e-6 * scale).backward()
    _, grad_h, grad_w = oracle.gradients(h, w, y, (y >= 0).double())
    assert relative(h.grad, grad_h * 1e-6 * scale) < 2e-3 and relative(w.grad, grad_w * 1e-6 * scale) < 2e-3


@pytest.mark.slow
def test_torch_compile_gives_the_same():
    keep = torch.arange(37) % 2 == 0
    problems = [problem(dtype=torch.float32) for _ in range(2)]

    def step(h, w, y):
        out = linear_cross_entropy(torch.tanh(h), w * 2, y, fixed(keep), chunk_size=8)
        return out.loss_sum / out.kept, out.entropy

    results = []
    for function, p in zip((step, torch.compile(step)), problems, strict=True):
        loss, entropy = function(*p)
        loss.backward()
        results.append((loss.detach(), entropy[p.labels >= 0], p.hidden.grad, p.weight.grad))
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, atol=1e-6)


def test_no_tensor_of_the_size_of_the_logits():
    rows, vocab = 2048, 20_000
    h, w, y = problem(rows, dim=8, vocab=vocab, dtype=torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        linear_cross_entropy(h, w, y).loss_sum.backward()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    gradients = 4 * (h.numel() + w.numel())
    assert peak - gradients < rows * vocab * 4 / 8
