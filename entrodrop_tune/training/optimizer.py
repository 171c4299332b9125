"""Optimizer and learning-rate schedule from config."""

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from entrodrop_tune.errors import UserError
from entrodrop_tune.training.components import build_component
from entrodrop_tune.training.config import Component, LrSchedulerConfig

TRANSFORMERS_NAME = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
}


def build_optimizer(component: Component, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Instantiate ``component`` over ``parameters``.

    Raises:
        UserError: no such class, it refuses its arguments, or it wants to compute the loss itself.
    """
    optimizer = build_component("optimizer", component, torch.optim.Optimizer, list(parameters))
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f'"optimizer" = {component.component}: it evaluates the loss several times a step (its step needs a'
            " closure), which the engine does not do. Use another one, for example torch.optim.AdamW."
        )
    return optimizer


def backward_and_update(loss: Tensor, optimizer: torch.optim.Optimizer, scale: Tensor) -> Tensor:
    """Backward through ``loss``; each parameter is updated as soon as its gradient is whole, which is then freed.

    So never more than one gradient is held. A parameter used twice (tied embeddings) is updated once, after both its
    uses, and no backward pass reads a weight that was already updated. Bit for bit the same as ``loss.backward()``,
    gradients times ``scale``, ``optimizer.step()``, for any optimizer that treats parameters one by one.

    Returns:
        The norm of all scaled gradients, a scalar; not finite if one of them was not (the update is done by then).
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norms: dict[Tensor, Tensor] = {}

    def update(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad *= scale
        norms[parameter] = torch.linalg.vector_norm(parameter.grad)
        optimizer.step()  # passes over parameters without a gradient: all but this one
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(update) for parameter in parameters]
    try:
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.linalg.vector_norm(torch.stack([norms[p] for p in parameters if p in norms]))


def build_lr_scheduler(config: LrSchedulerConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """A schedule that moves once an optimizer step, over ``total_steps`` steps."""
    specific = {}
    if config.name == "wsd":
        specific = {"num_decay_steps": round(config.decay_fraction * total_steps)}
    return get_scheduler(
        TRANSFORMERS_NAME[config.name],
        optimizer,
        num_warmup_steps=round(config.warmup_fraction * total_steps),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=specific,
    )
