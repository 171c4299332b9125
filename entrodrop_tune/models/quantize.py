"""QLoRA: the frozen base weights of the layers' linear maps in 4-bit NF4 (torchao), dequantized on the fly."""

import torch
from torch import nn
from torchao.dtypes.nf4tensor import NF4Tensor, linear_nf4, to_nf4
from torchtune.modules import TransformerDecoder
from torchtune.modules.peft import LoRALinear

from entrodrop_tune.errors import UserError

DEVICES = ("cpu", "cuda")
BLOCK = 64
"""Weights that share one scale (as in the QLoRA paper)."""
_SCALER_BLOCK = 256


class FrozenNF4Linear(nn.Module):
    """A linear map without adapter whose weight is NF4."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = quantized(linear.weight)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` → ``[..., out]``."""
        out = linear_nf4(input=x, weight=self.weight)
        return out if self.bias is None else out + self.bias


def quantize_linears(decoder: TransformerDecoder, device: torch.device | str) -> None:
    """Quantize every linear weight inside the decoder's layers, one layer at a time on ``device``, where it stays.

    Adapters keep their dtype.

    Raises:
        UserError: NF4 does not run on ``device``, or a weight's size does not fit its blocks.
    """
    kind = torch.device(device).type
    if kind not in DEVICES:
        raise UserError(f"adapter.type=qlora: NF4 weights run on {' and '.join(DEVICES)}, not on {kind}: use lora.")
    for layer in decoder.layers:
        layer.to(device)
        for name, module in list(layer.named_modules()):
            if isinstance(module, LoRALinear):
                module.weight = quantized(module.weight)
                module._quantize_base = True
            elif isinstance(module, nn.Linear) and not name.endswith(("lora_a", "lora_b")):
                parent = layer.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], FrozenNF4Linear(module))


def quantized(weight: torch.Tensor) -> nn.Parameter:
    """``weight`` in NF4, frozen."""
    blocks, rest = divmod(weight.numel(), BLOCK)
    if rest:
        raise UserError(
            f"adapter.type=qlora: a weight of shape {tuple(weight.shape)} is no multiple of {BLOCK} values, "
            "which NF4 needs. Use adapter.type=lora for this model."
        )
    # The scales are quantized in blocks too: powers of two, at most torchao's 256, and where that is possible a
    # multiple of 8 blocks, so that FSDP can cut the matrix for 2, 4 or 8 processes.
    shards = 8 if blocks % 8 == 0 else 1
    scaler_block = min(_SCALER_BLOCK, (blocks // shards) & -(blocks // shards))
    return nn.Parameter(to_nf4(weight.detach(), BLOCK, scaler_block), requires_grad=False)


def dequantized(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` itself, or what an NF4 weight stands for, in its original dtype."""
    return weight.get_original_weight() if isinstance(weight, NF4Tensor) else weight
