"""One optimizer step: microbatches -> summed gradients -> one division by the global count -> clip -> update.

With ``optimizer_in_bwd`` there is one microbatch, and division and update happen inside its backward pass.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torchtune.training import scale_grads

from entrodrop_tune.data import Batch, Row
from entrodrop_tune.method import IGNORE_INDEX, LossOutput
from entrodrop_tune.training.distributed import World, all_reduce_sum
from entrodrop_tune.training.dropper import TokenDropper
from entrodrop_tune.training.loss_model import LossModel
from entrodrop_tune.training.optimizer import backward_and_update
from entrodrop_tune.training.validation import forward, microbatches


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, summed over all microbatches and ranks.

    Attributes:
        loss: what was minimised, in nats a counted token (0 when nothing was kept).
        nll_all, entropy_mean: mean NLL and entropy over all target tokens, dropped ones too, in nats.
        kept: tokens with a weight above zero; ``valid``: all target tokens.
        grad_norm: before clipping.
        updated: False when nothing was kept, or loss or gradient was not finite.
        finite: whether loss and gradient were.
        stop: whether any process was asked to stop.
        seconds: wall time.
    """

    loss: float
    nll_all: float
    entropy_mean: float
    kept: int
    valid: int
    grad_norm: float
    updated: bool
    finite: bool
    stop: bool
    seconds: float


def optimizer_step(
    model: LossModel,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Row],
    dropper: TokenDropper,
    *,
    batch_size: int,
    pad_id: int,
    clip_grad_norm: float | None,
    in_backward: bool,
    world: World,
    offload: AbstractContextManager,
    stop_requested: Callable[[], bool],
) -> StepResult:
    """Run one step on the global batch ``rows``; the result is the same on every rank.

    Gradients of *sums* are accumulated and divided once by the global count, which is known only after the last
    forward pass. So neither the microbatch size nor the number of processes changes the update. ``in_backward`` needs
    that count before the backward pass: the config allows it for one microbatch on one process, without clipping.
    ``stop_requested`` is asked after the last forward pass.
    """
    started = time.perf_counter()
    sums = torch.zeros(7, dtype=torch.float64)
    # Rows of like length share a microbatch: less padding, and the sums do not care.
    for batch in microbatches(sorted(rows, key=_length), batch_size, world, pad_id):
        inputs = dropper.corrupt(batch)
        with offload:
            output = forward(model, replace(batch, tokens=inputs), dropper.select(batch))
        if not in_backward:
            output.loss_sum.backward()
        dropper.observe(batch, output)
        sums[:-1] += _sums(batch, output)
    sums[-1] = stop_requested()
    dropper.commit(world)
    loss_sum, nll_sum, entropy_sum, kept, valid, weight_sum, stop = all_reduce_sum(sums, world).tolist()
    count = {"kept": kept, "valid": valid, "weight_sum": weight_sum}[dropper.normalizer]
    finite = math.isfinite(loss_sum)
    grad_norm = 0.0
    if kept > 0:
        scale = torch.tensor(1.0 / count)
        if not in_backward:
            scale_grads(model, scale)
            grad_norm = _clip(model, clip_grad_norm)
        elif finite:  # a bad loss is caught before anything is updated, a bad gradient only after
            grad_norm = float(backward_and_update(output.loss_sum, optimizer, scale))
    finite = finite and math.isfinite(grad_norm)
    updated = kept > 0 and finite
    if updated and not in_backward:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(
        loss=loss_sum / count if kept else 0.0,
        nll_all=nll_sum / max(valid, 1),
        entropy_mean=entropy_sum / max(valid, 1),
        kept=int(kept),
        valid=int(valid),
        grad_norm=grad_norm,
        updated=updated,
        finite=finite,
        stop=stop > 0,
        seconds=time.perf_counter() - started,
    )


def _length(row: Row) -> int:
    return sum(len(sample) for sample in row)


def _sums(batch: Batch, output: LossOutput) -> torch.Tensor:
    target = batch.labels.flatten() != IGNORE_INDEX
    parts = (
        output.loss_sum.detach(),
        output.nll[target].double().sum(),
        output.entropy[target].double().sum(),
        output.kept,
        output.valid,
        output.weight_sum,
    )
    return torch.stack([part.to("cpu", torch.float64) for part in parts])


def _clip(model: nn.Module, max_norm: float | None) -> float:
    """Clip in place; the norm before clipping."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm if max_norm is not None else float("inf"))
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
