"""Processes, devices and collectives. With one process every function here is the identity."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torchtune.modules import TransformerSelfAttentionLayer

from entrodrop_tune.errors import UserError


@dataclass(frozen=True)
class World:
    """Where this process stands."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA where torch finds it, else the CPU.

    Raises:
        UserError: the named device is not available.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    # Apple's GPUs lack the float64 that the sums over a step need.
    found = accelerator.type if accelerator and accelerator.type != "mps" else "none"
    if name == "auto":
        name = "cuda" if found == "cuda" else "cpu"
    if name not in ("cpu", found):
        raise UserError(
            f'device = "{name}" is not available here (accelerator found: {found}). Use device=cpu or device=auto.'
        )
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(name)


@contextmanager
def world(device_name: str) -> Iterator[World]:
    """Join the process group torchrun set up (or none), and leave it on the way out."""
    device = pick_device(device_name)
    if "WORLD_SIZE" not in os.environ:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # CPU collectives carry host-side counts and objects, so gloo stays beside NCCL.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
        dist.barrier()  # nobody tears the group down while another still uses it
    finally:
        dist.destroy_process_group()


def shard(model: nn.Module, world: World, mixed_precision: bool) -> None:
    """Shard ``model`` in place with FSDP2: each transformer layer, then the rest as the root.

    The root's forward covers the loss, so inside it the output weight is a plain tensor and its gradient is
    reduced like any other.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        if mixed_precision
        else MixedPrecisionPolicy()
    )
    layers = [module for module in model.modules() if isinstance(module, TransformerSelfAttentionLayer)]
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        # Gradients are summed, not averaged: the engine divides by the global count. gloo knows no pre-multiplied sum.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def all_reduce_sum(values: torch.Tensor, world: World) -> torch.Tensor:
    """Sum a CPU tensor over all processes, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def all_gather_objects(value: Any, world: World) -> list[Any]:
    """``value`` of every process, in rank order."""
    if world.size == 1:
        return [value]
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: Any, world: World) -> Any:
    """Rank 0's ``value`` on every process."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier(world: World) -> None:
    if world.size > 1:
        dist.barrier()
