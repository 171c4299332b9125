"""Logits of a few rows, one vocabulary tile at a time: statistics in the same pass, gradients from what it leaves.

A tile of logits is small enough to stay in the CPU's cache between the matrix product and the reductions. Each tile is
stored as its own softmax; a row's probabilities are ``softmax(tile) * share[tile]``, and since ``share`` is a number a
row and tile, it is applied to the small factor of the following products (``hidden``) or to their small result, so the
``[rows, V]`` probabilities are never touched again.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Columns. 2048 is 2 % faster on an idle machine, but each tile is ten parallel regions, and where other processes
# compete for the cores every one of them waits for a thread that is not running.
CPU_TILE = 4096


class RowStatistics(NamedTuple):
    """Per row, ``[n]`` fp32 (fp64 for fp64 inputs)."""

    nll: Tensor
    entropy: Tensor
    logsumexp: Tensor
    correct: Tensor
    """Bool: no logit exceeds the label's."""
    top_k_entropy: Tensor | None
    """Entropy of the distribution renormalised over the ``top_k`` largest logits."""


class TiledLogits:
    """Working memory for chunks of at most ``rows`` rows against one ``weight [V, D]``.

    Args:
        weight: in the dtype the matrix products run in.
        rows: largest chunk.
        keep: whether to keep the tiles for :meth:`add_gradients`.
        top_k: also give the entropy over the largest ``top_k`` logits.
    """

    def __init__(self, weight: Tensor, rows: int, *, keep: bool, top_k: int | None = None) -> None:
        vocab = weight.shape[0]
        self.weight = weight
        self.dtype = weight.dtype
        self.accumulator = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.top_k = min(top_k, vocab) if top_k else None
        # On an accelerator the launch of a kernel costs more than a trip to memory: one tile.
        size = CPU_TILE if weight.device.type == "cpu" else vocab
        self.bounds = [(start, min(start + size, vocab)) for start in range(0, vocab, size)]
        self._size = min(size, vocab)
        self._rows = rows
        self._slots = weight.new_empty(rows * (vocab if keep else 0))
        self._scratch: dict[str, Tensor] = {}
        self._shares = torch.empty(0)

    def statistics(self, hidden: Tensor, labels: Tensor) -> RowStatistics:
        """Statistics of ``hidden [n, D] @ weight.T`` against ``labels [n]``; tiles are kept if asked for."""
        n = hidden.shape[0]
        tiles = len(self.bounds)
        top, log_sum, dot = (hidden.new_empty((tiles, n), dtype=self.accumulator) for _ in range(3))
        label_logit = hidden.new_zeros(n, dtype=self.accumulator)
        best: list[Tensor] = []
        for t, (start, stop) in enumerate(self.bounds):
            logits = self._logits(hidden, start, stop)
            local = labels - start
            inside = (local >= 0) & (local < stop - start)
            picked = logits.gather(1, local.clamp(0, stop - start - 1).unsqueeze(1)).squeeze(1)
            label_logit = torch.where(inside, picked, label_logit)
            if self.top_k:
                best.append(logits.topk(min(self.top_k, stop - start), dim=1).values)
            torch.amax(logits, 1, out=top[t])
            shifted = logits.sub_(top[t].unsqueeze(1))
            probability = self._softmax(shifted, t)
            # The largest logit is 0 after the shift, so its probability is 1 / sum(exp).
            torch.amax(probability, 1, out=log_sum[t])
            torch.linalg.vecdot(probability, shifted, out=dot[t])
            if self._slots.numel() and self.dtype != self.accumulator:
                self._slot(t, n).copy_(probability)
        log_sum.log_().neg_()
        return self._combine(top, log_sum, dot, label_logit, best)

    def add_gradients(
        self,
        hidden: Tensor,
        rows: Tensor | None,
        coefficient: Tensor,
        grad_hidden: Tensor | None,
        grad_weight: Tensor | None,
        first: bool,
    ) -> None:
        """Add the gradient of ``sum(coefficient * logsumexp(logits))`` for rows of the last :meth:`statistics` call.

        Args:
            hidden: ``[k, D]``, the rows' inputs.
            rows: ``[k]`` their numbers in that chunk; None means all, in order.
            coefficient: ``[k]`` in the accumulator's dtype.
            grad_hidden: ``[k, D]`` in the accumulator's dtype, or None.
            grad_weight: ``[V, D]`` in the accumulator's dtype, or None.
            first: ``grad_weight`` is uninitialised; write instead of add.
        """
        n = self._shares.shape[1]
        k = hidden.shape[0]
        shares = self._shares if rows is None else self._shares[:, rows]
        scales = (shares * coefficient).unsqueeze(2)
        for t, (start, stop) in enumerate(self.bounds):
            probability = self._slot(t, n)
            if rows is not None:
                out = self._buffer("gathered", k, stop - start, self.dtype)
                probability = torch.index_select(probability, 0, rows, out=out)
            if grad_hidden is not None:
                product = self._buffer("rows", k, hidden.shape[1], self.dtype)
                torch.mm(probability, self.weight[start:stop], out=product)
                grad_hidden.addcmul_(product, scales[t])
            if grad_weight is not None:
                scaled = torch.mul(hidden, scales[t].to(self.dtype))
                self._accumulate(grad_weight[start:stop], probability.T, scaled, first)

    def _accumulate(self, target: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
        if target.dtype == self.dtype:
            if first:
                torch.mm(left, right, out=target)
            else:
                target.addmm_(left, right)
            return
        product = torch.mm(left, right, out=self._buffer("tile", target.shape[0], target.shape[1], self.dtype))
        if first:
            target.copy_(product)
        else:
            target.add_(product)

    def _logits(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        out = self._buffer("logits", hidden.shape[0], stop - start, self.dtype)
        logits = torch.mm(hidden, self.weight[start:stop].T, out=out)
        if self.dtype == self.accumulator:
            return logits
        return self._buffer("wide", logits.shape[0], logits.shape[1], self.accumulator).copy_(logits)

    def _softmax(self, shifted: Tensor, tile: int) -> Tensor:
        if self._slots.numel() and self.dtype == self.accumulator:
            out = self._slot(tile, shifted.shape[0])
        else:
            out = self._buffer("softmax", shifted.shape[0], shifted.shape[1], self.accumulator)
        return torch.softmax(shifted, 1, out=out)

    def _combine(
        self, top: Tensor, log_sum: Tensor, dot: Tensor, label_logit: Tensor, best: list[Tensor]
    ) -> RowStatistics:
        highest = top.amax(0)
        relative = top - highest + log_sum
        total = torch.logsumexp(relative, 0)
        log_share = relative - total
        self._shares = log_share.exp()
        # Chain rule of entropy: within the tiles, plus between them.
        entropy = (self._shares * (log_sum - dot - log_share)).sum(0)
        top_k_entropy = None
        if self.top_k:
            log_p = torch.cat(best, 1).topk(self.top_k, dim=1).values.log_softmax(1)
            top_k_entropy = -(log_p.exp() * log_p).sum(1)
        return RowStatistics(
            nll=total - (label_logit - highest),
            entropy=entropy.clamp_(min=0),
            logsumexp=total + highest,
            correct=label_logit >= highest,
            top_k_entropy=top_k_entropy,
        )

    def _slot(self, tile: int, rows: int) -> Tensor:
        start, stop = self.bounds[tile]
        offset = start * self._rows
        return self._slots[offset : offset + rows * (stop - start)].view(rows, stop - start)

    def _buffer(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        flat = self._scratch.get(name)
        if flat is None or flat.numel() < rows * columns:
            flat = self._scratch[name] = torch.empty(rows * columns, dtype=dtype, device=self.weight.device)
        return flat[: rows * columns].view(rows, columns)
