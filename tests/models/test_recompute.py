"""Layers that recompute instead of keeping: torch's own gradients bit for bit, and less kept memory."""

import pytest
import torch
from torchtune import modules

from entrodrop_tune.models.feed_forward import FeedForward
from entrodrop_tune.models.norm import RMSNorm

DIM, HIDDEN = 32, 96


class PlainNorm(RMSNorm):
    """Autograd keeps what it likes."""

    def forward(self, x):
        return self._norm(x, self.scale)


def pairs(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours, and the same computation as autograd differentiates it."""
    if name == "norm":
        ours, reference = RMSNorm(DIM), PlainNorm(DIM)
        torch.nn.init.uniform_(ours.scale, 0.5, 1.5)
        reference.load_state_dict(ours.state_dict())
        return ours, reference
    linears = {
        "gate_proj": torch.nn.Linear(DIM, HIDDEN, bias=False),
        "up_proj": torch.nn.Linear(DIM, HIDDEN, bias=False),
        "down_proj": torch.nn.Linear(HIDDEN, DIM, bias=False),
    }
    return FeedForward(**linears), modules.FeedForward(**linears)


def run(module: torch.nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Output and all gradients, and the bytes kept for the backward pass besides parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    gradients = torch.autograd.grad((y.float() ** 2).sum(), [x, *module.parameters()])
    return [y, *gradients], sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["norm", "feed_forward"])
def test_values_and_gradients_are_those_of_plain_autograd(name, dtype):
    torch.manual_seed(0)
    ours, reference = (module.to(dtype) for module in pairs(name))
    x = torch.randn(4, 16, DIM, dtype=dtype)
    (mine, my_bytes), (theirs, their_bytes) = run(ours, x), run(reference, x)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert my_bytes < 0.8 * their_bytes


def test_frozen_parameters_get_no_gradient():
    norm = RMSNorm(DIM).requires_grad_(False)
    x = torch.randn(4, DIM, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None and norm.scale.grad is None
