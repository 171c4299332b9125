"""What a checkpoint holds: the model for others, and everything this engine needs to go on as if never interrupted."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from entrodrop_tune.errors import UserError
from entrodrop_tune.models import is_adapter, save_adapter, save_hf, save_merged
from entrodrop_tune.training.checkpoint import RESUME
from entrodrop_tune.training.config import RunConfig
from entrodrop_tune.training.distributed import World
from entrodrop_tune.training.dropper import TokenDropper
from entrodrop_tune.training.sharded import load_shards, save_shards
from entrodrop_tune.training.validation import Validator

SHARDS = "optimizer"  # folder below resume/

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_FULL_TRAINED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass
class Progress:
    """Where a run stands. The data position and every random number follow from ``step`` and the seed."""

    step: int = 0
    tokens: int = 0
    skipped_steps: int = 0
    best_step: int | None = None
    best_value: float | None = None
    validations_since_best: int = 0


class RunState:
    """The parts that change during training, gathered for one atomic save.

    Args:
        config: the run's config.
        decoder: the model's decoder (sharded or not).
        optimizer, lr_scheduler, dropper, validator: as built.
    """

    def __init__(
        self,
        config: RunConfig,
        decoder: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LambdaLR,
        dropper: TokenDropper,
        validator: Validator,
    ) -> None:
        self.config = config
        self.decoder = decoder
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.dropper = dropper
        self.validator = validator
        self.progress = Progress()

    def gather(self, world: World, shards: Path) -> "Snapshot":
        """Collect the state on rank 0 (collective: every rank must call).

        Sharded full fine-tuning leaves the optimizer's tensors, two thirds of it all, out: every process writes its
        own to the folder ``shards``, which the snapshot takes over.

        Raises:
            OSError: ``shards`` could not be written.
        """
        merged = self.config.adapter is not None and self.config.checkpoint.save_merged
        options = _FULL if self.config.adapter is None or merged else _FULL_TRAINED
        # The model first: it also puts the root's parameters, whole since the last forward pass, back into shards.
        model = get_model_state_dict(self.decoder, options=options)
        sharded = world.size > 1 and self.config.adapter is None
        if sharded:
            optimizer = save_shards(shards, self.decoder, self.optimizer, world)
        else:
            optimizer = get_optimizer_state_dict(self.decoder, self.optimizer, options=_FULL)
        return Snapshot(
            model=model,
            optimizer={
                "optimizer": optimizer,
                "sharded": sharded,
                "lr_scheduler": self.lr_scheduler.state_dict(),
            },
            tensors={
                **_prefixed("dropper", self.dropper.state_dict(world)),
                **_prefixed("validator", self.validator.state_dict()),
            },
            values={"progress": asdict(self.progress)},
            shards=shards,
        )

    def restore(self, folder: Path, world: World) -> None:
        """Load ``folder/resume`` into the parts; full fine-tuning has already loaded its weights from ``folder``."""
        resume = folder / RESUME
        values = json.loads((resume / "state.json").read_text())
        tensors = load_file(resume / "state.safetensors")
        if self.config.adapter is not None:
            options = StateDictOptions(full_state_dict=True, strict=False)
            trained: dict[str, Any] = load_file(resume / "trained.safetensors")
            set_model_state_dict(self.decoder, trained, options=options)
        saved = _read_optimizer(resume / "optimizer.pt")
        if saved.get("sharded"):
            load_shards(resume / SHARDS, self.decoder, self.optimizer, saved["optimizer"], world)
        else:
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.decoder, self.optimizer, saved["optimizer"], options=options)
        self.lr_scheduler.load_state_dict(saved["lr_scheduler"])
        self.dropper.load_state_dict(_unprefixed("dropper", tensors))
        self.validator.load_state_dict(_unprefixed("validator", tensors))
        self.progress = Progress(**values["progress"])


@dataclass(frozen=True)
class Snapshot:
    """A run's state on the CPU of rank 0 (and in the folder ``shards``, where there is one), ready to be written."""

    model: dict[str, Any]
    optimizer: dict[str, Any]
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    shards: Path

    def write(self, folder: Path, config: RunConfig) -> None:
        """Fill ``folder``: the model (or adapter) for everyone, ``resume/`` for this engine."""
        resume = folder / RESUME
        resume.mkdir()
        if config.adapter is None:
            save_hf(self.model, config.model.path, folder)
        else:
            save_adapter(self.model, config.adapter, config.model.path, folder)
            trained = {name: tensor for name, tensor in self.model.items() if is_adapter(name)}
            save_file(trained, resume / "trained.safetensors")
            if config.checkpoint.save_merged:
                save_merged(self.model, config.adapter, config.model.path, folder / "merged")
        with (resume / "optimizer.pt").open("wb") as file:  # a path would hide what the system says of a full disk
            torch.save(self.optimizer, file)
        if self.shards.is_dir():
            self.shards.rename(resume / SHARDS)
        save_file(self.tensors, resume / "state.safetensors")
        (resume / "state.json").write_text(json.dumps(self.values, indent=1) + "\n")


def _read_optimizer(path: Path) -> dict[str, Any]:
    # Quantised optimizers keep tensor subclasses, which safetensors cannot hold; weights_only runs no code.
    try:
        return torch.load(path, weights_only=True)
    except UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors and will not be loaded: it could run code. Was it made elsewhere? Delete"
            f" {path.parent.parent} to go on from the checkpoint before it."
        ) from None


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.contiguous() for name, tensor in tensors.items()}


def _unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
