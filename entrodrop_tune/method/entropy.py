"""Entropy of the next-token distribution: fp32, in nats, exact in the tails."""

import torch
from torch import Tensor

_CHUNK_BYTES = 32 * 2**20
# exp underflows to 0 in fp32 below -104 and in fp64 below -746, so moving a logit here from -inf changes no
# probability and keeps 0 * -inf out of the sum.
_FLOOR = -1000.0


def token_entropy(logits: Tensor, *, chunk_bytes: int = _CHUNK_BYTES) -> Tensor:
    """Entropy ``H = logsumexp(z) - sum(softmax(z) * z)`` of each row of logits, in nats.

    Args:
        logits: ``[..., V]``, any floating dtype. ``-inf`` marks impossible tokens. Rows with ``+inf`` are the limit
            of growing logits: uniform over the infinite entries.
        chunk_bytes: working memory; rows are processed in groups of about this size.

    Returns:
        ``[...]`` fp32 (fp64 for fp64 logits), detached: no gradient flows through the entropy. Between 0 (one-hot) and
        ``ln V`` (uniform); nan where a row holds nan or only ``-inf``.

    Raises:
        ValueError: ``logits`` is not floating point or has no vocabulary dimension.
    """
    if logits.dim() == 0 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating point [..., V], got {logits.dtype} {tuple(logits.shape)}")
    vocab = logits.shape[-1]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.detach().reshape(-1, vocab)
    entropy = torch.empty(rows.shape[0], dtype=dtype, device=logits.device)
    step = max(1, chunk_bytes // (vocab * dtype.itemsize))
    for start in range(0, rows.shape[0], step):
        entropy[start : start + step] = _entropy(rows[start : start + step].to(dtype))
    return entropy.reshape(logits.shape[:-1])


def _entropy(logits: Tensor) -> Tensor:
    top, place = logits.max(-1, keepdim=True)
    # inf - inf is nan, but the limit is wanted: the infinite entries become 0, everything else impossible.
    infinite = torch.where(logits == top, 0.0, _FLOOR).to(logits.dtype)
    shifted = torch.where(torch.isposinf(top), infinite, logits - top)
    floored = shifted.clamp(min=_FLOOR)
    # Relative to the largest probability; leaving that one out of the sum keeps what the others add to it, however
    # little: the entropy of a nearly certain row is exact to its last digits.
    others = floored.exp().scatter(-1, place, 0.0)
    rest = others.sum(-1)
    return torch.log1p(rest) - torch.linalg.vecdot(others, floored) / (1 + rest)
