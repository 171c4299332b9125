"""Decoder → Hugging Face directory, PEFT adapter, or both merged, as transformers, peft and lm-eval read them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from entrodrop_tune.models.architecture import model_directory
from entrodrop_tune.models.config import AdapterConfig
from entrodrop_tune.models.names import hf_name, is_adapter, peft_name
from entrodrop_tune.models.quantize import dequantized

# What travels with the weights, unchanged: generation settings, every tokenizer format, chat templates, licence.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates",
    "LICENSE*",
)


def save_hf(
    state_dict: Mapping[str, Tensor], source_dir: str | Path, out_dir: str | Path, max_shard_size: str = "5GB"
) -> None:
    """Write a model directory.

    Args:
        state_dict: Full weights by torchtune name, on the CPU, unsharded, without adapters.
        source_dir: The directory the model was loaded from: config, tokenizer and chat template are copied from it.
        out_dir: Created if needed; files in it are overwritten.
        max_shard_size: Weights beyond it are split into ``model-00001-of-0000N.safetensors`` and an index.
    """
    from huggingface_hub import save_torch_state_dict

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    weights = {hf_name(name): tensor.detach().contiguous() for name, tensor in state_dict.items()}
    save_torch_state_dict(weights, out, max_shard_size=max_shard_size)
    source = model_directory(source_dir)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(weights["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_companions(source, out)


def copy_companions(source: Path, out: Path) -> None:
    """Copy tokenizer, chat template, generation settings and licence from one model directory to another."""
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            if path.is_dir():
                shutil.copytree(path, out / path.name, dirs_exist_ok=True)
            else:
                shutil.copy2(path, out / path.name)


def save_adapter(
    state_dict: Mapping[str, Tensor], adapter: AdapterConfig, base_path: str | Path, out_dir: str | Path
) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` in PEFT's format.

    Args:
        state_dict: Weights by torchtune name, on the CPU; base weights in it are left out.
        adapter: What the weights were trained with.
        base_path: Written into the config, so that ``peft.AutoPeftModelForCausalLM`` finds the base model.
        out_dir: Created if needed; files in it are overwritten. Tokenizer files come along.
    """
    from safetensors.torch import save_file

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    weights = {peft_name(name): t.detach().contiguous() for name, t in state_dict.items() if is_adapter(name)}
    if not weights:
        raise ValueError("the state dict holds no adapter weights")
    save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(Path(base_path).expanduser().resolve()),
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": list(adapter.target_modules),
        "use_dora": adapter.type == "dora",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_companions(model_directory(base_path), out)


def save_merged(
    state_dict: Mapping[str, Tensor],
    adapter: AdapterConfig,
    source_dir: str | Path,
    out_dir: str | Path,
    max_shard_size: str = "5GB",
) -> None:
    """Write a model directory with the adapter folded into the base weights; arguments as for :func:`save_hf`."""
    save_hf(merge_adapter(state_dict, adapter), source_dir, out_dir, max_shard_size)


@torch.no_grad()
def merge_adapter(state_dict: Mapping[str, Tensor], adapter: AdapterConfig) -> dict[str, Tensor]:
    """Base weights plus update, computed in fp32 and rounded once; 4-bit base weights are dequantized first."""
    merged = {}
    for name, tensor in state_dict.items():
        if is_adapter(name):
            continue
        base = dequantized(tensor)
        module = name.removesuffix(".weight")
        if f"{module}.lora_a.weight" not in state_dict:
            merged[name] = base
            continue
        down, up = (state_dict[f"{module}.lora_{side}.weight"].float() for side in "ab")
        weight = base.float() + adapter.scaling * up @ down
        if adapter.type == "dora":
            magnitude = state_dict[f"{module}.magnitude"].float()
            weight *= (magnitude / torch.linalg.norm(weight, dim=1))[:, None]
        merged[name] = weight.to(base.dtype)
    return merged
