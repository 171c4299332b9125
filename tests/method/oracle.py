"""The definitions, in float64, row by row, in no way the fast path's."""

import math

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """``-sum p ln p`` of each row, with ``0 ln 0 = 0``."""
    rows = []
    for row in logits.double().reshape(-1, logits.shape[-1]):
        p = torch.exp(row - row.max())
        p = p / p.sum()
        rows.append(-sum(float(x) * math.log(float(x)) for x in p if x > 0))
    return torch.tensor(rows, dtype=torch.float64).reshape(logits.shape[:-1])


def weighted_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    row_weights: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """``sum_i w_i loss_i`` from whole logits in float64; differentiable."""
    logits = hidden.double() @ weight.double().T
    lse = torch.logsumexp(logits, 1)
    total = logits.new_zeros(())
    for i, (label, w) in enumerate(zip(labels.tolist(), row_weights.tolist(), strict=True)):
        if label < 0 or w == 0:
            continue
        nll = lse[i] - logits[i, label]
        smooth = lse[i] - logits[i].mean()
        total = total + w * ((1 - label_smoothing) * nll + label_smoothing * smooth + z_loss * lse[i] ** 2)
    return total


def gradients(hidden: Tensor, weight: Tensor, labels: Tensor, row_weights: Tensor, **options) -> tuple[Tensor, ...]:
    """Loss, and its gradients with respect to ``hidden`` and ``weight``, in float64."""
    h = hidden.detach().double().requires_grad_()
    w = weight.detach().double().requires_grad_()
    loss = weighted_loss(h, w, labels, row_weights, **options)
    if not loss.requires_grad:
        return loss, torch.zeros_like(h), torch.zeros_like(w)
    return loss.detach(), *torch.autograd.grad(loss, (h, w))
