"""EntroDropLoss behind torchtune's interface."""

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torchtune.config import instantiate
from torchtune.modules.loss import CEWithChunkedOutputLoss

from entrodrop_tune.method import EntroDropLoss, token_entropy


def batch(rows: int = 3, length: int = 16, vocab: int = 40):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, length, vocab, generator=generator) * 3).requires_grad_()
    labels = torch.randint(vocab, (rows, length), generator=generator)
    labels[:, :4] = -100
    return logits, labels


def test_at_rate_zero_it_is_torchtunes_loss():
    logits, labels = batch()
    config = OmegaConf.create({"_component_": "entrodrop_tune.method.EntroDropLoss", "drop_rate": 0.0})
    ours = instantiate(config)
    theirs = CEWithChunkedOutputLoss()
    assert ours.num_output_chunks == theirs.num_output_chunks and ours.ignore_index == theirs.ignore_index
    chunks = list(logits.chunk(8, dim=1))
    expected = torch.autograd.grad(theirs(chunks, labels), logits)[0]
    assert torch.allclose(ours(chunks, labels), theirs(chunks, labels))
    assert torch.allclose(torch.autograd.grad(ours(chunks, labels), logits)[0], expected)
    assert torch.allclose(ours(logits, labels), theirs(chunks, labels))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_flattened_as_torchtunes_recipes_hand_it_over(rate):
    logits, labels = batch()
    loss = EntroDropLoss(threshold=1.0, drop_rate=rate)
    flat = loss(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    assert torch.equal(flat, loss(logits, labels))


def test_drops_low_entropy_tokens_and_averages_over_the_rest():
    logits, labels = batch()
    loss = EntroDropLoss(threshold=1.0, drop_rate=1.0)
    low = token_entropy(logits) < 1.0
    value = loss(list(logits.chunk(8, dim=1)), labels)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.masked_fill(low, -100).flatten())
    assert torch.allclose(value, expected)
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.equal(gradient.abs().sum(-1) > 0, ~low & (labels != -100))
    loss.eval()
    assert torch.allclose(loss(logits, labels), F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_rate_is_a_probability():
    logits, labels = torch.zeros(1, 20_000, 2), torch.zeros(1, 20_000, dtype=torch.int64)
    torch.manual_seed(0)
    _, kept = EntroDropLoss(threshold=5.0, drop_rate=0.3).compute_cross_entropy(logits[0], labels[0])
    assert abs(int(kept) / 20_000 - 0.7) < 0.02


def test_nothing_kept_is_zero_not_nan():
    logits, labels = batch()
    value = EntroDropLoss(threshold=100.0, drop_rate=1.0)(logits, labels)
    value.backward()
    assert float(value.detach()) == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": -1.0}, "threshold"), ({"drop_rate": 1.5}, "drop_rate"), ({"num_output_chunks": 0}, "chunks")],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        EntroDropLoss(**options)


@pytest.mark.slow
def test_torchtunes_own_compile_helper():
    from torchtune.training import compile_loss

    logits, labels = batch()
    loss = EntroDropLoss(threshold=1.0, drop_rate=1.0)
    eager = loss(list(logits.chunk(8, dim=1)), labels)
    assert torch.allclose(compile_loss(loss, verbose=False)(list(logits.chunk(8, dim=1)), labels), eager)
