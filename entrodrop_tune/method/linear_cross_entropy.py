"""Output layer, cross-entropy, entropy and token selection in one pass, without the ``[N, V]`` logits.

A chunk of rows at a time: logits, then entropy and NLL, then ``select``, then gradients for the kept rows only. Counted
in products of ``[N, D] x [D, V]`` the work is ``1 + 2 * kept fraction`` (``1 + kept`` when the weight is frozen).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from entrodrop_tune.method.constants import IGNORE_INDEX
from entrodrop_tune.method.tiles import CPU_TILE, RowStatistics, TiledLogits

Select = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``select(entropy [n], nll [n], rows [n]) -> [n]`` bool (keep) or float (weight, 0 drops).

``rows`` are row numbers of ``hidden``. A callable with an attribute ``top_k`` that is not None is given the entropy of
the distribution renormalised over the ``top_k`` largest logits instead.
"""


class LossOutput(NamedTuple):
    """Sums over the rows given, and what happened to each row (detached)."""

    loss_sum: Tensor
    """Scalar, differentiable: sum of weight * loss over kept rows. Divide by the *global* kept or valid count."""
    kept: Tensor
    """int64 scalar: rows whose weight is not 0. When it is 0, ``loss_sum`` is 0 and so is every gradient."""
    valid: Tensor
    """int64 scalar: rows whose label is not ignored."""
    weight_sum: Tensor
    """Scalar: sum of the weights (``kept`` for a bool selection)."""
    entropy: Tensor
    """``[N]`` nats; nan on ignored rows."""
    nll: Tensor
    """``[N]`` nats, without smoothing or weights; nan on ignored rows."""
    keep: Tensor
    """``[N]`` bool; False on ignored rows."""
    weights: Tensor
    """``[N]``; 0 on dropped and ignored rows."""
    correct: Tensor | None
    """``[N]`` bool: no logit exceeds the label's; False on ignored rows. None unless asked for."""


class _Settings(NamedTuple):
    select: Select | None
    ignore_index: int
    chunk_size: int | None
    label_smoothing: float
    z_loss: float
    dtype: torch.dtype
    need_hidden: bool
    need_weight: bool


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    select: Select | None = None,
    *,
    ignore_index: int = IGNORE_INDEX,
    chunk_size: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    with_accuracy: bool = False,
) -> LossOutput:
    """Cross-entropy of ``hidden @ weight.T`` with per-token entropies and a selection of the tokens that count.

    Gradients are computed here, in the forward pass, and scaled in the backward pass. Without gradients (under
    ``no_grad``, or when neither tensor requires them) only the forward products are done. Matrix products run in
    ``hidden``'s dtype (under autocast in its dtype); everything else, sums over chunks included, in fp32.

    Args:
        hidden: ``[N, D]`` floating point, the output layer's inputs.
        weight: ``[V, D]``, the output layer; may be in another dtype, tied to the embedding, or frozen.
        labels: ``[N]`` int64, already shifted; ``ignore_index`` marks rows that do not count and cost nothing.
        select: see :data:`Select`; called once a chunk, on valid rows only, never with gradients. None keeps all.
        chunk_size: rows a chunk. By default their memory is 1/8 of the fp32 logits', within 128 (in 16 bits 256) and
            512 rows.
        label_smoothing: share of the target spread over the vocabulary, as in ``F.cross_entropy``.
        z_loss: coefficient of ``logsumexp(logits) ** 2`` (PaLM, arXiv 2204.02311, section 5).
        with_accuracy: fill ``correct``.

    Raises:
        ValueError: shapes or dtypes do not fit, a label lies outside the vocabulary, an option outside its range, or
            ``select`` returned something other than ``[n]`` bool or non-negative float. Where a row's own statistics
            are not finite, its weight may be nan: then so is ``loss_sum``.
    """
    _check(hidden, weight, labels, ignore_index, chunk_size, label_smoothing)
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype in (torch.float32, torch.float16, torch.bfloat16):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    grads = torch.is_grad_enabled()
    settings = _Settings(
        select,
        ignore_index,
        chunk_size,
        label_smoothing,
        z_loss,
        hidden.dtype,
        grads and hidden.requires_grad,
        grads and weight.requires_grad,
    )
    with torch.autocast(device, enabled=False):
        values = _LinearCrossEntropy.apply(hidden, weight, labels, settings)
    output = LossOutput(*values)
    return output if with_accuracy else output._replace(correct=None)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    @torch.compiler.disable
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, settings: _Settings):
        run = _Pass(hidden, weight, labels, settings)
        run.all_chunks()
        ctx.set_materialize_grads(False)
        ctx.gradients = (run.grad_hidden, run.final_grad_weight())
        ctx.dtypes = (hidden.dtype, weight.dtype)
        outputs = run.output()
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor | None, *_):
        if grad_loss is None:
            return None, None, None, None
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy: backward a second time; keep the graph with retain_graph=True")
        # The gradients are as large as the weight: scale in place unless the graph is kept for another backward.
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        unit = not keep and grad_loss.device.type == "cpu" and bool(grad_loss == 1)
        scaled = []
        for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True):
            if gradient is not None and not unit:
                gradient = gradient * grad_loss if keep else gradient.mul_(grad_loss)
            scaled.append(None if gradient is None else gradient.to(dtype))
        if not keep:
            ctx.gradients = None
        return *scaled, None, None


class _Pass:
    """One call's buffers and the loop over chunks."""

    def __init__(self, hidden: Tensor, weight: Tensor, labels: Tensor, settings: _Settings) -> None:
        self.hidden, self.labels, self.settings = hidden, labels, settings
        self.weight = weight.to(settings.dtype)
        self.rows = (labels != settings.ignore_index).nonzero().squeeze(1)
        self.chunk = settings.chunk_size or _chunk_rows(self.rows.numel(), self.weight)
        needed = settings.need_hidden or settings.need_weight
        top_k = getattr(settings.select, "top_k", None)
        self.tiles = TiledLogits(self.weight, min(self.chunk, self.rows.numel()), keep=needed, top_k=top_k)
        wide = self.tiles.accumulator
        # fp16 underflows before the loss scale arrives in backward: its gradients stay in fp32 until then.
        narrow = wide if settings.dtype == torch.float16 else settings.dtype
        self.grad_hidden = hidden.new_zeros(hidden.shape, dtype=narrow) if settings.need_hidden else None
        self.grad_weight = weight.new_empty(weight.shape, dtype=wide) if settings.need_weight else None
        self.grad_weight_is_empty = True
        self.smoothing_direction = hidden.new_zeros(hidden.shape[1], dtype=wide)
        self.mean_weight = self.weight.mean(0, dtype=wide) if settings.label_smoothing else None
        count = labels.shape[0]
        self.entropy, self.nll = (hidden.new_full((count,), torch.nan, dtype=wide) for _ in range(2))
        self.loss, self.weights = (hidden.new_zeros(count, dtype=wide) for _ in range(2))
        self.correct = torch.zeros(count, dtype=torch.bool, device=hidden.device)

    def all_chunks(self) -> None:
        for rows in self.rows.split(self.chunk):
            hidden = self.hidden if rows.numel() == self.hidden.shape[0] else self.hidden[rows]
            labels = self.labels[rows]
            statistics = self.tiles.statistics(hidden, labels)
            weights = self._select(statistics, rows)
            self.entropy[rows], self.nll[rows] = statistics.entropy, statistics.nll
            self.correct[rows], self.weights[rows] = statistics.correct, weights
            self.loss[rows] = self._row_loss(statistics, hidden)
            if self.settings.need_hidden or self.settings.need_weight:
                self._gradients(hidden, labels, statistics.logsumexp, weights, rows)

    def _select(self, statistics: RowStatistics, rows: Tensor) -> Tensor:
        if self.settings.select is None:
            return torch.ones_like(statistics.nll)
        entropy = statistics.entropy if statistics.top_k_entropy is None else statistics.top_k_entropy
        chosen = self.settings.select(entropy, statistics.nll, rows)
        if chosen.shape != rows.shape or not (chosen.dtype == torch.bool or chosen.is_floating_point()):
            raise ValueError(
                f"select must return bool or float of shape {tuple(rows.shape)}, "
                f"got {chosen.dtype} {tuple(chosen.shape)}"
            )
        weights = chosen.to(statistics.nll.dtype)
        measured = statistics.nll.isfinite() & entropy.isfinite()
        if bool(((weights < 0) | (weights.isnan() & measured)).any()):
            raise ValueError("select returned a weight that is negative or nan")
        return weights

    def _row_loss(self, statistics: RowStatistics, hidden: Tensor) -> Tensor:
        loss, smoothing = statistics.nll, self.settings.label_smoothing
        if self.mean_weight is not None:
            # The mean logit is hidden . mean(weight): smoothing needs no pass over the logits.
            uniform = statistics.logsumexp - hidden.to(self.mean_weight.dtype) @ self.mean_weight
            loss = torch.lerp(loss, uniform, smoothing)
        if self.settings.z_loss:
            loss = loss + self.settings.z_loss * statistics.logsumexp**2
        return loss

    def _gradients(self, hidden: Tensor, labels: Tensor, lse: Tensor, weights: Tensor, rows: Tensor) -> None:
        kept = weights.nonzero().squeeze(1)
        if kept.numel() == 0:
            return
        everything = kept.numel() == rows.numel()
        if not everything:
            hidden, labels, lse, weights, rows = (x[kept] for x in (hidden, labels, lse, weights, rows))
        coefficient = weights * (1 + 2 * self.settings.z_loss * lse)
        on_label = weights * (1 - self.settings.label_smoothing)
        wide = None
        if self.grad_hidden is not None:
            wide = torch.zeros(hidden.shape, dtype=self.tiles.accumulator, device=hidden.device)
        self.tiles.add_gradients(
            hidden, None if everything else kept, coefficient, wide, self.grad_weight, self.grad_weight_is_empty
        )
        if wide is not None and self.grad_hidden is not None:
            wide.addcmul_(self.weight[labels].to(wide.dtype), on_label.unsqueeze(1), value=-1)
            if self.mean_weight is not None:
                wide.addr_(weights, self.mean_weight, alpha=-self.settings.label_smoothing)
            self.grad_hidden[rows] = wide.to(self.grad_hidden.dtype)
        if self.grad_weight is not None:
            self.grad_weight_is_empty = False
            inputs = hidden.to(self.grad_weight.dtype)
            self.grad_weight.index_add_(0, labels, inputs * on_label.unsqueeze(1), alpha=-1)
            if self.settings.label_smoothing:
                self.smoothing_direction += weights @ inputs

    def final_grad_weight(self) -> Tensor | None:
        if self.grad_weight is None:
            return None
        if self.grad_weight_is_empty:
            return self.grad_weight.zero_()
        if self.settings.label_smoothing:
            share = self.settings.label_smoothing / self.weight.shape[0]
            self.grad_weight.sub_(self.smoothing_direction, alpha=share)
        return self.grad_weight

    def output(self) -> tuple[Tensor, ...]:
        keep = self.weights != 0  # a weight that is nan included: it must show in the sum
        # Dropped rows may hold anything, nan included: select, do not multiply.
        loss_sum = torch.where(keep, self.weights * self.loss, 0.0).sum()
        valid = torch.tensor(self.rows.numel(), device=keep.device)
        return (
            loss_sum,
            keep.sum(),
            valid,
            self.weights.sum(),
            self.entropy,
            self.nll,
            keep,
            self.weights,
            self.correct,
        )


def _chunk_rows(valid: int, weight: Tensor) -> int:
    """Rows a chunk: working memory of an eighth of the fp32 logits, but 128 to 512 rows, in balanced chunks.

    A row costs its logits in the products' dtype and, in fp32, two tiles and two rows of inputs. Below 128 rows, or at
    odd numbers of them, matrix products lose a tenth of their speed. In 16 bits each chunk adds to a weight gradient in
    fp32, which takes longer and is larger than the chunk: 256 rows at least.
    """
    vocab, dim = weight.shape
    row = vocab * weight.dtype.itemsize + 4 * 2 * (min(CPU_TILE, vocab) + dim)
    smallest = 128 if weight.dtype.itemsize >= 4 else 256
    largest = min(max(valid * vocab * 4 // 8 // row // 16 * 16, smallest), 512)
    chunks = max(1, -(-valid // largest))
    return max(1, -(-valid // chunks // 16) * 16)


def _check(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, chunk_size: int | None, label_smoothing: float
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [N, D] and weight [V, D], got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if not hidden.is_floating_point() or not weight.is_floating_point():
        raise ValueError(f"hidden and weight must be floating point, got {hidden.dtype} and {weight.dtype}")
    if labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 [{hidden.shape[0]}], got {labels.dtype} {tuple(labels.shape)}")
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= weight.shape[0]))
    if bool(outside.any()):
        raise ValueError(f"labels: {int(labels[outside][0])} is outside the vocabulary of {weight.shape[0]}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size}: must be at least 1")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing = {label_smoothing}: must be in [0, 1)")
