"""Hugging Face directories in and out of torchtune decoders."""

from entrodrop_tune.models.architecture import SUPPORTED, Architecture, read_architecture
from entrodrop_tune.models.config import AdapterConfig, ModelConfig
from entrodrop_tune.models.decoder import Decoder, hidden_states, output_weight
from entrodrop_tune.models.load import load_model
from entrodrop_tune.models.names import is_adapter
from entrodrop_tune.models.save import merge_adapter, save_adapter, save_hf, save_merged
from entrodrop_tune.models.tokenizer import load_tokenizer, pad_id

__all__ = [
    "SUPPORTED",
    "AdapterConfig",
    "Architecture",
    "Decoder",
    "ModelConfig",
    "hidden_states",
    "is_adapter",
    "load_model",
    "load_tokenizer",
    "merge_adapter",
    "output_weight",
    "pad_id",
    "read_architecture",
    "save_adapter",
    "save_hf",
    "save_merged",
]
