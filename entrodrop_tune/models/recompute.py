"""Elementwise steps that keep their inputs alone for the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, evaluated again in the backward pass instead of keeping what it computes on the way.

    The same values and gradients, bit for bit, for a cheap deterministic ``function`` of nothing but its inputs. Of a
    layer's kept activations a third goes. torch.compile decides itself what to keep.
    """
    if torch.compiler.is_compiling():
        return function(*inputs)
    return _Recomputed.apply(function, *inputs)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            output = ctx.function(*inputs)
        gradients = iter(torch.autograd.grad(output, [tensor for tensor in inputs if tensor.requires_grad], gradient))
        return None, *(next(gradients) if need else None for need in needed)
