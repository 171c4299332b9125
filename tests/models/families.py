"""A tiny random model of each supported family, as a Hugging Face directory."""

from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.tiny import tiny_tokenizer

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LLAMA = (LlamaConfig, LlamaForCausalLM)
_QWEN2 = (Qwen2Config, Qwen2ForCausalLM)
_QWEN3 = (Qwen3Config, Qwen3ForCausalLM)
FAMILIES = {
    "smollm2": (*_LLAMA, {"tie_word_embeddings": True}),
    "llama2-mha-untied": (*_LLAMA, {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama3.1": (*_LLAMA, {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": False}),
    "llama3.2": (*_LLAMA, {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-biases": (*_LLAMA, {"attention_bias": True, "mlp_bias": True}),
    "llama-linear-rope": (
        *_LLAMA,
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "llama-dynamic-rope": (
        *_LLAMA,
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "qwen2.5-tied": (*_QWEN2, {"tie_word_embeddings": True}),
    "qwen2.5-untied": (*_QWEN2, {"tie_word_embeddings": False}),
    "qwen2.5-yarn": (*_QWEN2, {"rope_parameters": _YARN}),
    "qwen3-tied": (*_QWEN3, {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-untied-mqa": (*_QWEN3, {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": False}),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 128}),
}


def family_dir(name: str, path: Path) -> Path:
    """Save the model ``name`` at ``path``, every parameter away from its initial value."""
    config_class, model_class, options = FAMILIES[name]
    tokenizer = tiny_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    torch.manual_seed(0)
    model = model_class(config_class(**{**sizes, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms and biases would hide mistakes at 1 and 0
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
