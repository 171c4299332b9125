"""What a Hugging Face ``config.json`` says about a decoder, and which decoders we can build."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from entrodrop_tune.errors import UserError

# model_type -> the models users know it by.
SUPPORTED = {
    "llama": "Llama 2, 3.x, SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
}
_REFUSED = {
    "gemma2": "it caps its logits with tanh, which the fused loss does not compute",
    "gemma3_text": "it caps or scales its logits and mixes two rotary bases",
    "qwen3_moe": "mixture-of-experts layers are not implemented",
    "mixtral": "mixture-of-experts layers are not implemented",
}
_ACTIVATIONS = {"silu": torch.nn.SiLU}
# Beyond any model there is: a slip or a broken file, which would take all memory before its weights are looked at.
_LARGEST = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "hidden_size": 1 << 24,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 26,
    "max_position_embeddings": 1 << 32,
}


@dataclass(frozen=True)
class Architecture:
    """Sizes and options of a decoder, in torchtune's terms."""

    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    embed_dim: int
    intermediate_dim: int
    max_seq_len: int
    """Longest sequence, in tokens, for which the model is what its authors trained."""
    norm_eps: float
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """RMSNorm over each head's query and key, before the rotary embedding."""
    inv_freq: torch.Tensor
    """Rotary inverse frequencies ``[head_dim / 2]``, fp32, rope scaling included."""
    rotary_scaling: float
    """Factor on cos and sin (1 except for yarn)."""


def model_directory(path: str | Path) -> Path:
    """``path`` as a directory that holds a ``config.json``.

    Raises:
        UserError: there is no such folder, or it is not a Hugging Face model directory.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f'model folder "{path}" does not exist. Make it with `entrodrop prepare smollm2 --output {path}`, '
            f"or download one with `hf download ORG/NAME --local-dir {path}`."
        )
    if not (folder / "config.json").is_file():
        raise UserError(f'model folder "{path}" has no config.json: it is not a Hugging Face model directory.')
    return folder


def read_architecture(path: str | Path) -> Architecture:
    """Read ``config.json`` in ``path``.

    Raises:
        UserError: the folder or file is missing or broken, or the architecture is not supported.
    """
    from transformers import AutoConfig

    folder = model_directory(path)
    file = folder / "config.json"
    raw = read_config(file)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f'{file} is not a model config: "model_type" = {model_type!r}.')
    if model_type not in SUPPORTED:
        reason = f": {_REFUSED[model_type]}" if model_type in _REFUSED else ""
        known = ", ".join(f"{name} ({models})" for name, models in SUPPORTED.items())
        raise UserError(f'architecture "{model_type}" of {folder} is not supported{reason}. Supported: {known}.')
    if "quantization_config" in raw:
        settings = raw["quantization_config"]
        method = settings.get("quant_method", "unknown") if isinstance(settings, dict) else settings
        raise UserError(
            f"the weights in {folder} are quantized ({method}): use the unquantized model (adapter.type=qlora "
            "quantizes it while loading)."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _from_transformers(config, folder)
    except UserError:
        raise
    except Exception as error:  # transformers checks values by raising all kinds of errors
        raise UserError(f"{file} is not a usable model config: {' '.join(str(error).split())[:300]}.") from None


def read_config(file: Path) -> dict[str, Any]:
    """``config.json`` as it stands.

    Raises:
        UserError: the file is not a JSON object.
    """
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a model config: {error!r}.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file} is not a model config: it must hold a JSON object.")
    return raw


def _from_transformers(config: Any, folder: Path) -> Architecture:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    for name, largest in _LARGEST.items():
        size = getattr(config, name, None)
        if size is not None and not 1 <= size <= largest:
            raise UserError(f'"{name}" = {size} in {folder / "config.json"}: it must be from 1 to {largest}.')
    if config.hidden_act not in _ACTIVATIONS:
        raise UserError(f'hidden_act "{config.hidden_act}" of {folder} is not supported, only "silu".')
    rope_type = config.rope_parameters.get("rope_type", "default")
    if rope_type not in ("default", "linear", "dynamic", "yarn", "llama3"):
        raise UserError(
            f'rope scaling "{rope_type}" of {folder} is not supported. Supported: linear, dynamic, yarn, llama3.'
        )
    # Every supported family computes its frequencies as Llama does; only the numbers in the config differ.
    rotary = LlamaRotaryEmbedding(config)
    attention_bias = bool(getattr(config, "attention_bias", False))
    return Architecture(
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        embed_dim=config.hidden_size,
        intermediate_dim=config.intermediate_size,
        max_seq_len=_max_seq_len(config),
        norm_eps=config.rms_norm_eps,
        tied_embeddings=config.tie_word_embeddings,
        qkv_bias=attention_bias or config.model_type == "qwen2",
        output_bias=attention_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=config.model_type == "qwen3",
        inv_freq=rotary.inv_freq.float(),
        rotary_scaling=float(rotary.attention_scaling),
    )


def _max_seq_len(config: Any) -> int:
    # Up to the window's length, sliding-window attention is plain causal attention, so that is our limit.
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None) or []
    slides = "sliding_attention" in layer_types or (config.model_type == "mistral" and window is not None)
    if window and slides:
        return min(config.max_position_embeddings, window)
    return config.max_position_embeddings
