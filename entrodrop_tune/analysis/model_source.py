"""Load what MODEL names for analysis: a Hugging Face directory or a PEFT adapter on one, as a fused-loss model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from entrodrop_tune.errors import UserError
from entrodrop_tune.evaluation.models import ModelSource, resolve_model
from entrodrop_tune.models import AdapterConfig, Decoder, ModelConfig, is_adapter, load_model, load_tokenizer, pad_id
from entrodrop_tune.models.names import peft_name
from entrodrop_tune.training.distributed import World, pick_device
from entrodrop_tune.training.loss_model import LossModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    """A model under analysis. With an adapter, only the adapter's parameters require gradients."""

    source: ModelSource
    model: LossModel
    tokenizer: Any
    pad_id: int
    world: World


def load_subject(path: Path | str, *, device: str = "auto", dtype: str = "fp32") -> Subject:
    """Load model and tokenizer.

    Raises:
        UserError: no model there, or an adapter this project cannot read.
    """
    source = resolve_model(path)
    world = World(0, 1, pick_device(device))
    config = ModelConfig(path=str(source.base))
    adapter = _read_adapter(source.adapter) if source.adapter else None
    decoder = load_model(config, adapter, dtype=DTYPES[dtype], device=world.device)
    if source.adapter is not None:
        _load_adapter(decoder, source.adapter)
    tokenizer = load_tokenizer(str(source.base))
    return Subject(source, LossModel(decoder).eval(), tokenizer, pad_id(tokenizer), world)


def _read_adapter(folder: Path) -> AdapterConfig:
    try:
        peft = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return AdapterConfig(
            type="dora" if peft.get("use_dora") else "lora",
            rank=peft["r"],
            alpha=peft["lora_alpha"],
            target_modules=tuple(sorted(peft["target_modules"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / 'adapter_config.json'} is no adapter this project can read: {reason}") from None


def _load_adapter(decoder: Decoder, folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise UserError(f"{folder} has adapter_config.json but no adapter_model.safetensors.")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read ({error}): is the adapter damaged?") from None
    names = {peft_name(name): name for name in decoder.state_dict() if is_adapter(name)}
    weights = {names.get(key, key): tensor for key, tensor in tensors.items()}
    missing = set(names.values()) ^ set(weights)
    if missing:
        raise UserError(f"{file} does not fit its base model: {min(missing)} is on one side only.")
    decoder.load_state_dict(weights, strict=False)
