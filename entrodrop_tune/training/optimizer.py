"""Optimizer and learning-rate schedule from config."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

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
        UserError: no such class, or it refuses its arguments.
    """
    return build_component("optimizer", component, torch.optim.Optimizer, list(parameters))


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
