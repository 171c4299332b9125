"""The method on logits, behind torchtune's loss interface."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from entrodrop_tune.method.constants import IGNORE_INDEX
from entrodrop_tune.method.entropy import token_entropy


class EntroDropLoss(nn.Module):
    """Cross-entropy over the tokens that entropy-guided dropout keeps, for recipes that hand over logits.

    A drop-in for ``torchtune.modules.loss.CEWithChunkedOutputLoss``: in a stock torchtune recipe's config, set
    ``loss._component_: entrodrop_tune.method.EntroDropLoss``. The loss sees neither epochs nor sample ids there, so the
    threshold is in nats, the drop rate is constant and coins come from torch's global generator. It works on
    materialised logits; :func:`linear_cross_entropy` is faster and has the curriculum.

    Args:
        threshold: nats; tokens of lower entropy are candidates.
        drop_rate: probability of dropping a candidate. In ``eval()`` mode nothing is dropped.
        num_output_chunks: pieces for a loop of your own to have the decoder cut its output into
            (``model.set_num_output_chunks``). torchtune's recipes do that for ``CEWithChunkedOutputLoss`` alone, which
            they know by its class name: they hand this loss all logits in one tensor.
        ignore_index: label of positions that do not count.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        drop_rate: float = 0.5,
        num_output_chunks: int = 8,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        if not threshold >= 0.0:
            raise ValueError(f"threshold = {threshold}: must be 0 nats or more")
        if not 0.0 <= drop_rate <= 1.0:
            raise ValueError(f"drop_rate = {drop_rate}: must be in [0, 1]")
        if num_output_chunks < 1:
            raise ValueError(f"num_output_chunks = {num_output_chunks}: must be at least 1")
        self.threshold = threshold
        self.drop_rate = drop_rate
        self.num_output_chunks = num_output_chunks
        self.ignore_index = ignore_index

    def compute_cross_entropy(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """``[n, V]`` and ``[n]`` -> summed NLL over kept tokens, and their number."""
        keep = labels != self.ignore_index
        if self.training and self.drop_rate > 0:
            coins = torch.rand(labels.shape, device=labels.device)
            keep = keep & ~((token_entropy(logits) < self.threshold) & (coins < self.drop_rate))
        labels = labels.masked_fill(~keep, self.ignore_index)
        loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=self.ignore_index, reduction="sum")
        return loss, keep.sum()

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """Mean NLL over kept tokens; 0 with zero gradients when nothing is kept.

        Args:
            logits: ``[N, V]`` or ``[B, T, V]``, or the latter cut along T into pieces.
            labels: ``[N]`` or ``[B, T]``, already shifted.
        """
        pieces = [logits] if isinstance(logits, Tensor) else list(logits)
        # Flat logits come in one piece, and in those of a list the second dimension is T.
        label_pieces = [labels] if len(pieces) == 1 else labels.split([piece.shape[1] for piece in pieces], dim=1)
        results = [
            self.compute_cross_entropy(piece.reshape(-1, piece.shape[-1]), part.reshape(-1))
            for piece, part in zip(pieces, label_pieces, strict=True)
        ]
        total = torch.stack([loss for loss, _ in results]).sum()
        kept = torch.stack([count for _, count in results]).sum()
        return total / kept.clamp(min=1)
