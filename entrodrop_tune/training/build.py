"""RunConfig -> the parts of a run. Everything that can be refused is refused here, before the first step."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import compile_model, get_act_offloading_ctx_manager, set_activation_checkpointing
from torchtune.training.metric_logging import MetricLoggerInterface

from entrodrop_tune.data import TrainingData, load_data
from entrodrop_tune.errors import UserError
from entrodrop_tune.models import Decoder, ModelConfig, load_model, load_tokenizer, pad_id, read_architecture
from entrodrop_tune.training.components import find_component
from entrodrop_tune.training.config import RunConfig
from entrodrop_tune.training.distributed import World, shard
from entrodrop_tune.training.dropper import TokenDropper
from entrodrop_tune.training.loss_model import LossModel, add_neftune_noise
from entrodrop_tune.training.optimizer import build_lr_scheduler, build_optimizer
from entrodrop_tune.training.schedule import BatchSchedule
from entrodrop_tune.training.state import RunState
from entrodrop_tune.training.validation import Validator


@dataclass
class Run:
    """The parts of one training run."""

    config: RunConfig
    world: World
    data: TrainingData
    schedule: BatchSchedule
    model: LossModel
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR
    dropper: TokenDropper
    validator: Validator
    state: RunState
    pad_id: int
    offload: AbstractContextManager

    @property
    def total_steps(self) -> int:
        """Optimizer steps this run will take."""
        return min(self.schedule.total_steps, self.config.max_steps or self.schedule.total_steps)

    def parameters(self) -> dict[str, int]:
        """Total and trained parameter counts of the decoder."""
        all_parameters = list(self.model.decoder.parameters())
        trained = [parameter for parameter in all_parameters if parameter.requires_grad]
        return {"total": sum(p.numel() for p in all_parameters), "trainable": sum(p.numel() for p in trained)}


def build(config: RunConfig, world: World, weights_from: str | None = None) -> Run:
    """Load data, model and optimizer.

    Args:
        config: the checked config.
        world: this process.
        weights_from: a checkpoint's model directory to load in place of ``config.model.path`` (resumed).

    Raises:
        UserError: anything the user can fix.
    """
    if world.size > 1:
        _refuse_what_does_not_shard(config, world)
    if config.metric_logger is not None:  # opens files or a session elsewhere when built: for a run only
        find_component("metric_logger", config.metric_logger, MetricLoggerInterface)
    tokenizer = load_tokenizer(config.model.path)
    context = read_architecture(config.model.path).max_seq_len
    data = load_data(config.data, tokenizer, progress=world.is_main, context=context)
    if not data.validation:
        _refuse_what_needs_validation(config)
    padding = pad_id(tokenizer)
    schedule = BatchSchedule(data, config.seed, config.epochs, config.global_batch(world.size))
    dropper = TokenDropper(config.entrodrop, config.seed, config.epochs, schedule.total_steps, padding)

    torch.manual_seed(config.seed)
    decoder = build_decoder(config, world, weights_from)
    model = LossModel(
        decoder,
        autocast=config.dtype == "bf16-mixed",
        label_smoothing=config.regularization.label_smoothing,
        kl_to_base=config.regularization.kl_to_base,
        base=_frozen_base(config, world),
        normalizer=dropper.normalizer,
    )
    _wrap(model, config)
    if world.size > 1:
        shard(model, world, mixed_precision=config.dtype == "bf16-mixed")

    dropper.attach(decoder.tok_embeddings)
    optimizer = build_optimizer(config.optimizer, [p for p in decoder.parameters() if p.requires_grad])
    lr_scheduler = build_lr_scheduler(config.lr_scheduler, optimizer, schedule.total_steps)
    validator = Validator(data.validation, config.validation.batch_size or config.batch_size, world, padding)
    return Run(
        config=config,
        world=world,
        data=data,
        schedule=schedule,
        model=model,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        dropper=dropper,
        validator=validator,
        state=RunState(config, decoder, optimizer, lr_scheduler, dropper, validator),
        pad_id=padding,
        offload=_offloading(config, world, decoder),
    )


def _refuse_what_does_not_shard(config: RunConfig, world: World) -> None:
    if config.optimizer_in_bwd:
        raise UserError(
            f"optimizer_in_bwd works on one process, this launch has {world.size}: set it to false"
            " (FSDP2 shards gradients over the processes)."
        )
    if config.optimizer.component.startswith("torchao.optim."):
        raise UserError(
            f'"optimizer" = {config.optimizer.component}: torchao cannot put its quantised moments together for a'
            f" checkpoint, and this launch has {world.size} processes. Use torch.optim.AdamW, or one process."
        )


def _refuse_what_needs_validation(config: RunConfig) -> None:
    wanted = {
        "validation.early_stopping_patience": config.validation.early_stopping_patience,
        "entrodrop.full_at_gap": config.entrodrop.full_at_gap,
    }
    for key, value in wanted.items():
        if value is not None:
            raise UserError(
                f'"{key}" needs validation data: name data.validation, or set data.validation_fraction above 0.'
            )


def build_decoder(config: RunConfig, world: World, weights_from: str | None) -> Decoder:
    """The trained model; with ``bf16-mixed`` what is trained stays in fp32 and what is frozen is bf16."""
    source = config.model.model_copy(update={"path": weights_from}) if weights_from else config.model
    trained_dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    frozen_dtype = torch.float32 if config.dtype == "fp32" else torch.bfloat16
    dtype = trained_dtype if config.adapter is None else frozen_dtype
    return load_model(source, config.adapter, dtype=dtype, adapter_dtype=trained_dtype, device=world.device)


def _frozen_base(config: RunConfig, world: World) -> Decoder | None:
    """A frozen copy of the pretrained model for the KL term; with adapters, switching them off gives it for free."""
    if config.regularization.kl_to_base == 0 or config.adapter is not None:
        return None
    dtype = torch.float32 if config.dtype == "fp32" else torch.bfloat16
    return load_model(ModelConfig(path=config.model.path), dtype=dtype, device=world.device).requires_grad_(False)


def _wrap(model: LossModel, config: RunConfig) -> None:
    if config.regularization.neftune_noise_alpha > 0:
        add_neftune_noise(model.decoder.tok_embeddings, config.regularization.neftune_noise_alpha)
    if config.compile:
        compile_model(model.decoder, verbose=False)
    if config.enable_activation_checkpointing:
        set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})


def _offloading(config: RunConfig, world: World, decoder: Decoder) -> AbstractContextManager:
    if not config.enable_activation_offloading:
        return nullcontext()
    if world.device.type != "cuda":
        raise UserError(f"enable_activation_offloading needs CUDA, the device is {world.device.type}: set it to false.")
    return get_act_offloading_ctx_manager(decoder, True)
