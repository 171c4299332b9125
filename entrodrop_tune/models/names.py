"""torchtune parameter names → Hugging Face and PEFT names. Nothing is permuted, so one direction is enough."""

import re

_PREFIXES = (
    (r"^tok_embeddings\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^output\.", "lm_head."),
    (r"^layers\.", "model.layers."),
)
_PARTS = {
    "attn": "self_attn",
    "output_proj": "o_proj",
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
    "sa_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "scale": "weight",
    "lora_a": "lora_A",
    "lora_b": "lora_B",
    "magnitude": "lora_magnitude_vector",
}
ADAPTER_SUFFIXES = (".lora_a.weight", ".lora_b.weight", ".magnitude")


def hf_name(name: str) -> str:
    """``layers.0.attn.output_proj.weight`` → ``model.layers.0.self_attn.o_proj.weight``."""
    for pattern, replacement in _PREFIXES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return ".".join(_PARTS.get(part, part) for part in renamed.split("."))
    raise KeyError(f"no Hugging Face name for parameter {name}")


def peft_name(name: str) -> str:
    """``layers.0.attn.q_proj.lora_a.weight`` → ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``."""
    return f"base_model.model.{hf_name(name)}"


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter (LoRA matrices, DoRA magnitude) and not to the base model."""
    return name.endswith(ADAPTER_SUFFIXES)
