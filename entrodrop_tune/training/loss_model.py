"""The decoder and the fused loss as one module.

They share a forward so that, under FSDP2, the root's unsharded output weight is at hand for the loss and its gradient
is reduced with the others.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchtune.modules import TransformerDecoder
from torchtune.modules.peft import disable_adapter

from entrodrop_tune.method import LossOutput, Select, linear_cross_entropy
from entrodrop_tune.models import hidden_states, output_weight

KL_CHUNK_TOKENS = 512


class LossModel(nn.Module):
    """Tokens and labels in, :class:`LossOutput` out; no logits of the whole batch in between.

    Args:
        decoder: the model that is trained.
        autocast: compute in bf16 while trained weights stay in fp32.
        label_smoothing: share of the target spread over the vocabulary.
        kl_to_base: weight of KL(base || model) in nats a counted token: dropped ones give none.
        base: frozen copy for the KL term; None means the decoder with its adapters switched off.
        normalizer: attribute of :class:`LossOutput` that the sum will be divided by. Where that is ``weight_sum``, a
            row's KL has the row's weight, so that ``kl_to_base`` means the same.
    """

    def __init__(
        self,
        decoder: TransformerDecoder,
        *,
        autocast: bool = False,
        label_smoothing: float = 0.0,
        kl_to_base: float = 0.0,
        base: TransformerDecoder | None = None,
        normalizer: str = "kept",
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.base = base
        self.autocast = autocast
        self.label_smoothing = label_smoothing
        self.kl_to_base = kl_to_base
        self.normalizer = normalizer

    def forward(
        self,
        tokens: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        select: Select | None = None,
    ) -> LossOutput:
        """Batch tensors (see :class:`entrodrop_tune.data.Batch`) -> sums and per-token values ``[B * T]``."""
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            hidden = hidden_states(self.decoder, tokens, mask=mask, input_pos=positions).flatten(0, 1)
            weight = output_weight(self.decoder)
            output = linear_cross_entropy(
                hidden,
                weight,
                labels.flatten(),
                select,
                label_smoothing=self.label_smoothing if self.training else 0.0,
                with_accuracy=not self.training,
            )
            if self.training and self.kl_to_base:
                base_hidden, base_weight = self._base_states(tokens, mask, positions)
                share = output.weights if self.normalizer == "weight_sum" else output.keep.float()
                kl = _linear_kl(hidden, weight, base_hidden.flatten(0, 1), base_weight, share)
                output = output._replace(loss_sum=output.loss_sum + self.kl_to_base * kl)
        return output

    @torch.no_grad()
    def _base_states(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.base is not None:
            return hidden_states(self.base, tokens, mask=mask, input_pos=positions), output_weight(self.base)
        self.decoder.eval()  # no dropout and no noise: the base is a fixed model
        with disable_adapter(self.decoder):
            states = hidden_states(self.decoder, tokens, mask=mask, input_pos=positions), output_weight(self.decoder)
        self.decoder.train()
        return states


def _linear_kl(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    base_hidden: torch.Tensor,
    base_weight: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    """Sum of ``share [N]`` * KL(base || model) in nats; a chunk of logits at a time, recomputed in the backward."""

    def chunk_kl(h: torch.Tensor, base_h: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        model = F.linear(h, weight).float().log_softmax(-1)
        base = F.linear(base_h, base_weight).float().log_softmax(-1)
        return (F.kl_div(model, base, reduction="none", log_target=True).sum(-1) * share).sum()

    rows = share.nonzero().squeeze(1)
    total = hidden.new_zeros((), dtype=torch.float32)
    for chunk in rows.split(KL_CHUNK_TOKENS):
        total = total + checkpoint(chunk_kl, hidden[chunk], base_hidden[chunk], share[chunk], use_reentrant=False)
    return total


def add_neftune_noise(embedding: nn.Module, alpha: float) -> None:
    """NEFTune (arXiv 2310.05914): while training, add uniform noise of scale ``alpha / sqrt(T * D)`` to embeddings."""

    def hook(module: nn.Module, _inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        scale = alpha / math.sqrt(output.size(1) * output.size(2))
        return output + torch.empty_like(output).uniform_(-scale, scale)

    embedding.register_forward_hook(hook)
