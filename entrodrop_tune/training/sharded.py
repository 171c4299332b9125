"""Optimizer state of a sharded run: each process writes and reads its own part.

torch.distributed.checkpoint cuts and rejoins, so a run may go on with another number of processes. The files are
safetensors (DCP's own format keeps its metadata in a pickle, which can run code when loaded). A process holds one file
in host memory at a time, and none holds the state as a whole.
"""

import errno
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from entrodrop_tune.training.distributed import World, barrier

TENSORS_A_FILE = 32


def save_shards(folder: Path, decoder: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> dict:
    """Write this process's part of the optimizer's tensors below ``folder`` (collective).

    Returns:
        What is not a tensor, in the layout of ``get_optimizer_state_dict``.

    Raises:
        OSError: some process could not write, or its files are not to be seen from process 0.
    """
    state: dict[str, Any] = get_optimizer_state_dict(decoder, optimizer)
    if tensors := _tensors(state):  # plain SGD has none
        _write(folder, tensors, world)
    others = {
        name: {key: value for key, value in values.items() if not isinstance(value, Tensor)}
        for name, values in state["state"].items()
    }
    return {"state": others, "param_groups": state["param_groups"]}


def _write(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    if world.is_main:
        shutil.rmtree(folder, ignore_errors=True)  # of a run killed while it wrote
    barrier(world)
    files = {name: 1 + number // TENSORS_A_FILE for number, name in enumerate(sorted(tensors))}
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    try:
        dcp.save(tensors, storage_writer=writer)
    except CheckpointException as failed:  # not an Exception: what went wrong on the first rank that failed is
        raise next(iter(failed.failures.values()))[0] from failed
    if world.is_main:
        check_complete(folder, tensors)


def load_shards(folder: Path, decoder: nn.Module, optimizer: torch.optim.Optimizer, others: dict, world: World) -> None:
    """Read what :func:`save_shards` wrote and returned, whatever the number of processes then and now (collective)."""
    state: dict[str, Any] = get_optimizer_state_dict(decoder, optimizer)
    if tensors := _tensors(state):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process: as meant
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world.size == 1)
    for name, values in others["state"].items():
        state["state"][name].update(values)
    state["param_groups"] = others["param_groups"]
    set_optimizer_state_dict(decoder, optimizer, state)


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, values in state["state"].items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def check_complete(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse to publish one process's part as the whole, which happens where there is no shared file system.

    Raises:
        OSError: some elements of ``tensors`` are in no file of ``folder``.
    """
    found: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for name, tensor in tensors.items():
        chunks = found[name].chunks if name in found else []
        if sum(math.prod(chunk.sizes) for chunk in chunks) != tensor.numel():
            trouble = f"{name} is not whole in {folder}; all processes must share the file system of output_dir"
            raise OSError(errno.EIO, trouble)
