import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entrodrop_tune.method import token_entropy
from tests.method import oracle

INF = math.inf


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    vocab=st.integers(1, 70),
    scale=st.sampled_from([1e-3, 1.0, 10.0, 300.0]),
    shift=st.sampled_from([0.0, -500.0, 1e4]),
    seed=st.integers(0, 10_000),
)
def test_equals_the_definition_in_float64(rows, vocab, scale, shift, seed):
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale + shift
    got = token_entropy(logits)
    assert got.dtype == torch.float32
    # 1e4 leaves the fp32 logits themselves 1e-3 apart; the oracle sees the same rounded logits.
    assert torch.allclose(got.double(), oracle.entropy(logits), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("vocab", [2, 1000, 256_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_uniform_is_ln_v_and_one_hot_is_zero(vocab, dtype):
    uniform = torch.full((vocab,), 3.0, dtype=dtype)
    assert float(token_entropy(uniform)) == pytest.approx(math.log(vocab), rel=1e-5)
    one_hot = torch.zeros(vocab, dtype=dtype)
    one_hot[vocab // 2] = 1000.0
    assert float(token_entropy(one_hot)) == 0.0


def test_masked_and_infinite_logits():
    rows = torch.tensor(
        [
            [0.0, 0.0, -INF, -INF],  # uniform over two
            [-INF, 5.0, -INF, -INF],  # one possible token
            [INF, 0.0, 1.0, -INF],  # one infinite logit wins
            [INF, INF, 1e30, 0.0],  # two share
        ]
    )
    assert torch.allclose(token_entropy(rows), torch.tensor([math.log(2), 0.0, 0.0, math.log(2)]))
    assert token_entropy(torch.tensor([[math.nan, 0.0], [-INF, -INF]])).isnan().all()


def test_tail_is_exact():
    # p = 1 / (1 + e^-d): for large d the entropy is about (1 + d) e^-d, far below fp32's spacing near 1.
    for gap in (5.0, 12.0, 20.0):
        p = math.exp(-gap) / (1 + math.exp(-gap))
        exact = -p * math.log(p) - (1 - p) * math.log1p(-p)
        assert float(token_entropy(torch.tensor([0.0, -gap]))) == pytest.approx(exact, rel=1e-3)


def test_shape_dtype_chunking_and_no_gradient():
    logits = torch.randn(3, 4, 5, 33, dtype=torch.float64, requires_grad=True)
    whole = token_entropy(logits)
    assert whole.shape == (3, 4, 5) and whole.dtype == torch.float64 and not whole.requires_grad
    assert torch.equal(whole, token_entropy(logits, chunk_bytes=1))
    assert token_entropy(torch.empty(0, 7)).shape == (0,)
    for wrong in (torch.tensor(1.0), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="logits"):
            token_entropy(wrong)


@pytest.mark.slow
def test_compiles_to_the_same_values():
    logits = torch.randn(6, 300)
    compiled = torch.compile(token_entropy, fullgraph=True)
    assert torch.allclose(compiled(logits), token_entropy(logits), atol=1e-6)
