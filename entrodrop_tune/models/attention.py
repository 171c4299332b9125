"""Self-attention in Hugging Face's layout: rotary embedding by halves, query/key norm before it.

torchtune rotates neighbouring pairs, so that Hugging Face weights must be permuted on the way in and out, and
normalises queries and keys after the rotation, which Qwen3 does before. Here weights are only renamed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.modules import MultiHeadAttention


class HalfRotary(nn.Module):
    """Rotary embedding that pairs element ``i`` with ``i + head_dim / 2`` (Su et al. 2021, as in GPT-NeoX)."""

    inv_freq: Tensor

    def __init__(self, inv_freq: Tensor, scaling: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.scaling = scaling

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # Frequencies follow the model to a device, never to a lower precision: bf16 angles are off by whole turns.
        original = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != original.dtype:
            self.inv_freq = original.to(self.inv_freq.device)
        return self

    def forward(self, query: Tensor, key: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rotate ``query`` and ``key`` ``[B, T, heads, head_dim]``; ``positions`` ``[B, T]`` defaults to 0..T-1."""
        if positions is None:
            positions = torch.arange(query.shape[1], device=query.device)[None]
        angles = positions[:, :, None, None].float() * self.inv_freq  # [B or 1, T, 1, head_dim / 2]
        cos = (angles.cos() * self.scaling).to(query.dtype)
        sin = (angles.sin() * self.scaling).to(query.dtype)
        return _rotate(query, cos, sin), _rotate(key, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class SelfAttention(MultiHeadAttention):
    """torchtune's grouped-query attention with :class:`HalfRotary` and query/key norms before the rotation."""

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        input_pos: Tensor | None = None,
    ) -> Tensor:
        """Attend within ``x`` ``[B, T, D]``.

        Args:
            x: Input.
            y: Ignored: torchtune's layer passes ``x`` twice.
            mask: ``None`` for plain causal, else ``[B, T, T]`` bool, True where row attends to column.
            input_pos: Positions ``[B, T]``, ``None`` for 0..T-1.
        """
        batch, length, _ = x.shape
        query = self.q_proj(x).view(batch, length, self.num_heads, self.head_dim)
        key = self.k_proj(x).view(batch, length, self.num_kv_heads, self.head_dim)
        value = self.v_proj(x).view(batch, length, self.num_kv_heads, self.head_dim)
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = self.pos_embeddings(query, key, input_pos)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=None if mask is None else mask[:, None],
            dropout_p=self.attn_dropout if self.training else 0.0,
            is_causal=mask is None,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return self.output_proj(attended.transpose(1, 2).flatten(2))
