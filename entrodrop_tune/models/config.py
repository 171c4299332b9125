"""The ``model`` and ``adapter`` sections of a run's config."""

from typing import Annotated, Literal

from pydantic import Field

from entrodrop_tune.config import Section

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
TargetModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_LINEAR: tuple[TargetModule, ...] = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


class ModelConfig(Section):
    """Which model, and the dropout added to it (regularisation baselines; pretraining used none)."""

    path: str
    """A Hugging Face model directory: config.json, safetensors weights, tokenizer. All sizes are read from it."""

    attention_dropout: Probability = 0.0
    """Probability of dropping an attention weight (0 = off)."""

    hidden_dropout: Probability = 0.0
    """Probability of dropping an element of each attention and MLP output before its residual addition (0 = off)."""


class AdapterConfig(Section):
    """LoRA, DoRA or QLoRA. Names and meaning are those of PEFT's ``LoraConfig``."""

    type: Literal["lora", "dora", "qlora"] = "lora"
    """``lora``; ``dora`` adds a learned magnitude per output channel; ``qlora`` keeps the base weights in 4-bit NF4."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the update (PEFT's ``r``)."""

    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """The update is scaled by alpha / rank (PEFT's ``lora_alpha``)."""

    dropout: Probability = 0.0
    """Dropout on the adapter's input (PEFT's ``lora_dropout``)."""

    target_modules: Annotated[tuple[TargetModule, ...], Field(min_length=1)] = ALL_LINEAR
    """Linear layers that get an adapter, by their Hugging Face names."""

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank
