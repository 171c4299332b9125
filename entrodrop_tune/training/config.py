"""The typed schema of a training config: every key, its default, its meaning."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from entrodrop_tune.config import Section
from entrodrop_tune.data.config import DataConfig
from entrodrop_tune.method import DROP_MODES, SELECTION_MODES, Curriculum
from entrodrop_tune.models.config import AdapterConfig, ModelConfig


class Component(Section):
    """A class named by its dotted path and its keyword arguments, instantiated as torchtune does."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    component: str = Field(alias="_component_", pattern=r"^[A-Za-z_][\w.]*\.[A-Za-z_]\w*$")
    """Dotted path, for example ``torch.optim.AdamW``."""

    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class LrSchedulerConfig(Section):
    """The learning rate over the run (shapes from transformers)."""

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape after warm-up; ``wsd`` is warm-up, stable, decay."""
    warmup_fraction: float = Field(0.03, ge=0, lt=1)
    """Share of all optimizer steps spent in linear warm-up."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """``wsd`` only: share of all steps spent in the final decay."""


class EntroDropConfig(Section):
    """Which tokens are dropped, where, and how that moves over the run."""

    select: Literal[SELECTION_MODES] = "entropy"  # type: ignore[valid-type]
    """entropy, fitted, loss and random drop tokens; none keeps all; soft, eaft_* and dft weight them."""
    site: Literal["loss", "input", "both"] = "loss"
    """``loss``: dropped tokens stay as context and give no loss. ``input``: they are replaced in the input."""
    preset: str | None = "ramp"
    """A curriculum by name; the keys below override its parts."""
    threshold: dict[str, Any] | None = None
    """``{quantile: SCHEDULE}`` or ``{nats: SCHEDULE}``; a schedule is a number or ``{shape, start, end, ...}``."""
    drop_rate: dict[str, Any] | float | None = None
    """Probability that a token below the threshold is dropped: a schedule in [0, 1]."""
    per: Literal["epoch", "step"] = "epoch"
    """Whether the curriculum moves once an epoch or every optimizer step."""
    source: Literal["live", "average", "base"] = "live"
    """Whose entropies: the model's own (at the input those of the epoch before), their running average over epochs, or
    the untouched model's."""
    scope: Literal["run", "sample"] = "run"
    """``sample``: the quantile is one of each sample's own tokens, in the epoch before."""
    full_at_gap: float | None = Field(None, gt=0)
    """Adaptive strength: the drop rate is multiplied by the last validation's NLL less the training NLL since the one
    before, divided by this many nats, within [0, 1]. Null leaves it to the schedule."""
    replacement: Literal["token", "noise"] = "token"
    """``input`` site: replace by the embedding of the padding token, or by noise of the embedding's own scale."""

    @model_validator(mode="after")
    def _check_curriculum(self) -> "EntroDropConfig":
        self.curriculum()
        if self.site != "loss" and self.select not in DROP_MODES:
            raise ValueError(
                f'site "{self.site}" needs select {", ".join(DROP_MODES)}: select "{self.select}" drops no token'
            )
        if self.remembers and self.select not in DROP_MODES:
            raise ValueError(f'select "{self.select}" knows no source or scope: needs select {", ".join(DROP_MODES)}')
        if self.scope == "sample" and self.curriculum().unit != "quantile":
            raise ValueError('scope "sample" needs threshold.quantile: nats are the same for every sample')
        return self

    @property
    def remembers(self) -> bool:
        """Whether the rule compares values of earlier epochs, not the running forward pass's."""
        return self.site != "loss" or self.source != "live" or self.scope == "sample"

    def curriculum(self) -> Curriculum:
        parts = {
            "preset": self.preset,
            "threshold": self.threshold,
            "drop_rate": self.drop_rate,
            "per": self.per,
        }
        return Curriculum.from_config({key: value for key, value in parts.items() if value is not None})


class RegularizationConfig(Section):
    """The baselines one compares against (weight decay is the optimizer's, dropout the model's)."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target probability spread over the vocabulary."""
    neftune_noise_alpha: float = Field(0.0, ge=0)
    """NEFTune: uniform noise of scale ``alpha / sqrt(length * dim)`` on the input embeddings; 0 is off."""
    kl_to_base: float = Field(0.0, ge=0)
    """Weight of KL(base || model) in nats a counted token (a dropped one gives none, a soft one its weight's share); 0
    is off."""


class ValidationConfig(Section):
    """When to validate, what "best" means, when to stop."""

    every_n_steps: int | None = Field(None, ge=1)
    """Validate every so many optimizer steps, beside the end of each epoch."""
    batch_size: int | None = Field(None, ge=1)
    """Sequences a forward pass; the training ``batch_size`` when omitted."""
    metric: Literal["nll", "nll_high_entropy", "nll_low_entropy", "token_accuracy"] = "nll"
    """What ``best`` and early stopping look at."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many validations without a better ``metric``."""
    min_delta: float = Field(0.0, ge=0)
    """How much better counts as better."""


class CheckpointConfig(Section):
    """What is saved beside the end of each epoch, and what is kept."""

    every_n_steps: int | None = Field(None, ge=1)
    """Save every so many optimizer steps, beside the end of each epoch."""
    keep_last: int = Field(2, ge=1)
    """How many of the newest checkpoints to keep; ``best`` is kept always."""
    save_merged: bool = False
    """LoRA: also write the merged model as a Hugging Face directory in ``merged/``."""


class RunConfig(Section):
    """One training run."""

    output_dir: Path
    """The run's folder; one run a folder."""
    resume: bool = False
    """Continue the run in ``output_dir`` from its last good checkpoint, or start it when there is none."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of data order, dropping coins, adapters, dropout and noise."""
    device: Literal["auto", "cpu", "cuda", "xpu"] = "auto"
    """Where to train; ``auto`` takes a CUDA GPU when there is one, else the CPU."""
    dtype: Literal["fp32", "bf16", "bf16-mixed"] = "bf16-mixed"
    """Weights and compute; ``bf16-mixed`` keeps trained weights in fp32 and computes in bf16."""

    model: ModelConfig
    """The pretrained model."""
    adapter: AdapterConfig | None = None
    """LoRA, DoRA or QLoRA (recipe ``lora_finetune`` only)."""
    data: DataConfig
    """Training and validation data."""

    epochs: int = Field(ge=1)
    """Passes over the training data."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimizer steps; schedules still span ``epochs``."""
    batch_size: int = Field(ge=1)
    """Sequences a forward pass and process."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward passes an optimizer step and process."""
    optimizer: Component
    """Any torch or torchtune optimizer."""
    lr_scheduler: LrSchedulerConfig = LrSchedulerConfig()
    """The learning rate over the run."""
    optimizer_in_bwd: bool = False
    """Update each parameter within the backward pass and free its gradient: less memory, the same result.
    Full fine-tuning on one process, with gradient_accumulation_steps 1 and clip_grad_norm null."""
    clip_grad_norm: float | None = Field(1.0, gt=0)
    """Largest gradient norm; ``null`` is off."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """NaN or inf in loss or gradient: stop and name the samples, or skip the step and count it."""

    entrodrop: EntroDropConfig = EntroDropConfig()
    """The method."""
    regularization: RegularizationConfig = RegularizationConfig()
    """Baselines and companions of the method."""
    validation: ValidationConfig = ValidationConfig()
    """Validation, best checkpoint, early stopping."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""

    enable_activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    enable_activation_offloading: bool = False
    """Keep saved activations in CPU memory (CUDA only)."""
    compile: bool = False
    """torch.compile each layer."""
    metric_logger: Component | None = None
    """A torchtune metric logger beside ``metrics.jsonl``, for example TensorBoard or W&B."""

    def global_batch(self, processes: int) -> int:
        """Sequences an optimizer step, over all microbatches and processes."""
        return self.batch_size * self.gradient_accumulation_steps * processes

    @field_validator("output_dir")
    @classmethod
    def _expand_home(cls, folder: Path) -> Path:
        return folder.expanduser()

    @model_validator(mode="after")
    def _check_combinations(self) -> "RunConfig":
        if self.optimizer_in_bwd:
            self._check_optimizer_in_bwd()
        if self.enable_activation_offloading and self.device == "cpu":
            raise ValueError("enable_activation_offloading needs CUDA: set it to false")
        return self

    def _check_optimizer_in_bwd(self) -> None:
        gone = "the gradients of a step never exist together"
        if self.gradient_accumulation_steps > 1:
            raise ValueError(f"optimizer_in_bwd needs gradient_accumulation_steps=1: {gone}")
        if self.clip_grad_norm is not None:
            raise ValueError(f"optimizer_in_bwd needs clip_grad_norm=null: {gone}")
        if self.on_nonfinite == "skip":
            raise ValueError("optimizer_in_bwd needs on_nonfinite=stop: a bad gradient shows after the first updates")
        if self.adapter is not None:
            raise ValueError("optimizer_in_bwd saves nothing with an adapter (small gradients): set it to false")
