"""Hugging Face directory → decoder with its weights, adapters initialised, trainable parameters marked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchtune.modules.peft import DoRALinear, LoRALinear

from entrodrop_tune.errors import UserError
from entrodrop_tune.models.architecture import model_directory, read_architecture
from entrodrop_tune.models.config import AdapterConfig, ModelConfig
from entrodrop_tune.models.decoder import Decoder, build_decoder
from entrodrop_tune.models.names import hf_name, is_adapter
from entrodrop_tune.models.quantize import quantize_linears


def load_model(
    model: ModelConfig,
    adapter: AdapterConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    adapter_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Decoder:
    """Build the decoder that ``model.path`` describes and load its safetensors weights.

    Adapters start as the identity (LoRA's A random from torch's global generator, B zero; DoRA's magnitude from the
    weights). With an adapter only its parameters require gradients, otherwise all do.

    Args:
        model: Directory and dropout.
        adapter: ``None`` for full fine-tuning.
        dtype: Of the base weights (QLoRA: of what is not 4-bit).
        adapter_dtype: Of the adapter; ``dtype`` when omitted.
        device: Where the model goes.

    Raises:
        UserError: unsupported architecture, missing folder, weights that are absent or do not fit the config.
    """
    architecture = read_architecture(model.path)
    with torch.device("meta"):
        decoder = build_decoder(architecture, model, adapter)
    weights = _read_weights(decoder, model_directory(model.path), dtype, architecture.tied_embeddings)
    decoder.load_state_dict(weights, strict=False, assign=True)
    if adapter is not None:
        _initialize_adapters(decoder, adapter_dtype or dtype)
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_(is_adapter(name))
        if adapter.type == "qlora":
            quantize_linears(decoder, device)
    return decoder.to(device)


def _initialize_adapters(decoder: Decoder, dtype: torch.dtype) -> None:
    for module in decoder.modules():
        if isinstance(module, LoRALinear | DoRALinear):
            for matrix in (module.lora_a, module.lora_b):
                matrix.weight = nn.Parameter(torch.empty(matrix.weight.shape, dtype=dtype))
            module.initialize_parameters()
        if isinstance(module, DoRALinear):
            module.magnitude = nn.Parameter(torch.empty(module.out_dim, dtype=dtype))
            module.initialize_dora_magnitude()


def _read_weights(decoder: Decoder, folder: Path, dtype: torch.dtype, tied: bool) -> dict[str, Tensor]:
    """Base parameters by torchtune name, each checked against the shape the config asks for."""
    expected = {name: p.shape for name, p in decoder.named_parameters() if not is_adapter(name)}
    weights = {}
    with _open_weights(folder) as (tensors, names):
        unread = names - {hf_name(name) for name in expected}
        extra = {n for n in unread if not n.endswith("rotary_emb.inv_freq") and not (tied and n == "lm_head.weight")}
        if extra:
            raise UserError(
                f"the weights in {folder} hold {len(extra)} tensors that its config.json does not describe, "
                f'for example "{min(extra)}".'
            )
        for name, shape in expected.items():
            source = hf_name(name)
            if source not in names:
                raise UserError(f'the weights in {folder} lack "{source}", which its config.json asks for.')
            tensor = tensors(source)
            if tensor.shape != shape:
                raise UserError(
                    f'"{source}" in {folder} has shape {tuple(tensor.shape)}, but config.json gives {tuple(shape)}.'
                )
            weights[name] = tensor.to(dtype)
    return weights


@contextmanager
def _open_weights(folder: Path) -> Iterator:
    """Yield ``(read one tensor by name, all names)`` over one or many safetensors files."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(_no_weights(folder))
    try:
        opened = [safe_open(file, framework="pt") for file in files]
    except SafetensorError as error:
        raise UserError(f"the safetensors files in {folder} cannot be read ({error}): download them again.") from None
    where = {name: shard for shard in opened for name in shard.keys()}  # noqa: SIM118  (not a mapping)
    yield (lambda name: where[name].get_tensor(name)), set(where)


def _no_weights(folder: Path) -> str:
    if list(folder.glob("*.bin")) or list(folder.glob("*.pth")):
        return (
            f"{folder} holds pickled weights (*.bin, *.pth), which can run code when loaded: convert them to "
            "safetensors with transformers' save_pretrained, or download the safetensors version."
        )
    return f"{folder} holds no model*.safetensors files: the download is incomplete."
