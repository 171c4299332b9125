"""A dry run: what training under a config would do, without doing it."""

import math
import time
from typing import Any

import torch

from entrodrop_tune.data import Batch
from entrodrop_tune.method import IGNORE_INDEX, CurriculumPoint
from entrodrop_tune.models import load_tokenizer
from entrodrop_tune.training.build import Run, build
from entrodrop_tune.training.config import RunConfig
from entrodrop_tune.training.distributed import World, pick_device
from entrodrop_tune.training.validation import forward, microbatches

PREVIEW_SAMPLES = 3


def preflight(config: RunConfig) -> dict[str, Any]:
    """Load everything a run would load, time one microbatch, and show what would be dropped.

    Raises:
        UserError: whatever training itself would refuse before its first step.
    """
    here = World(0, 1, pick_device(config.device))
    run = build(config, here)
    batch, seconds = _measure(run)
    return {
        "config": config.model_dump(mode="json", by_alias=True),
        "data": run.data.report.to_dict(),
        "parameters": run.parameters(),
        "steps": {
            "per_epoch": run.schedule.epoch_ends[0],
            "total": run.total_steps,
            "sequences_per_step": run.schedule.global_batch,
        },
        "memory_bytes": memory_estimate(run),
        "seconds": {
            "per_step": seconds * config.gradient_accumulation_steps,
            "total": seconds * config.gradient_accumulation_steps * run.total_steps,
            "note": "from one timed forward and backward pass; validation and saving come on top",
        },
        "curriculum": curriculum_table(run),
        "preview": _preview(run, batch),
    }


def memory_estimate(run: Run) -> dict[str, int]:
    """Bytes of one process, unsharded: exact for weights, gradients and AdamW moments, an estimate for activations."""
    trained = [p for p in run.model.parameters() if p.requires_grad]
    sizes = [p.numel() * p.element_size() for p in trained]
    batch = max(run.schedule.batch(0).rows, key=lambda row: sum(len(sample) for sample in row))
    length = sum(len(sample) for sample in batch)
    layer = run.model.decoder.layers[0]
    # What a layer keeps for its backward pass: about the inputs of each of its linear maps, twice over for the
    # elementwise operations between them.
    width = 2 * sum(m.weight.shape[1] for m in layer.modules() if isinstance(m, torch.nn.Linear))
    kept_layers = 1 if run.config.enable_activation_checkpointing else len(run.model.decoder.layers)
    element = 4 if run.config.dtype == "fp32" else 2
    parts = {
        "weights": sum(p.numel() * p.element_size() for p in run.model.parameters()),
        "gradients": max(sizes) if run.config.optimizer_in_bwd else sum(sizes),
        "optimizer": 2 * sum(sizes),
        "activations_estimate": run.config.batch_size * length * width * kept_layers * element,
    }
    return {**parts, "total_estimate": sum(parts.values())}


def curriculum_table(run: Run) -> list[dict[str, float]]:
    """Threshold and drop rate at the start of each epoch."""
    curriculum, config = run.dropper.curriculum, run.config
    rows = []
    for epoch in range(config.epochs):
        step = run.schedule.epoch_ends[epoch - 1] if epoch else 0
        point = curriculum.at(
            curriculum.progress(epoch=epoch, epochs=config.epochs, step=step, steps=run.schedule.total_steps)
        )
        rows.append({"epoch": epoch, curriculum.unit: point.threshold, "drop_rate": point.drop_rate})
    return rows


def _measure(run: Run) -> tuple[Batch, float]:
    """The first microbatch, and the seconds its forward and backward pass take; the dropper learns its values."""
    batch = next(microbatches(run.schedule.batch(0).rows, run.config.batch_size, run.world, run.pad_id))
    forward(run.model, batch).loss_sum.backward()  # the first pass pays for warming up
    started = time.perf_counter()
    output = forward(run.model, batch)
    output.loss_sum.backward()
    seconds = time.perf_counter() - started
    run.dropper.observe(batch, output)
    run.dropper.commit(run.world)
    run.dropper.end_epoch(run.world)  # a rule that looks at remembered values has these
    return batch, seconds


@torch.no_grad()
def _preview(run: Run, batch: Batch) -> list[dict[str, Any]]:
    """The first samples of the first batch, token by token, at the strongest moment of the curriculum."""
    curriculum = run.dropper.curriculum
    points = [CurriculumPoint(row[curriculum.unit], row["drop_rate"]) for row in curriculum_table(run)]
    epoch = points.index(max(points, key=curriculum.strength))
    run.dropper.gap = math.inf  # adaptive strength at its full
    run.dropper.begin_step(run.schedule.epoch_ends[epoch] - 1, epoch)
    output = forward(run.model, batch, run.dropper.rule(batch))
    weights, entropy = (values.view(batch.labels.shape) for values in (output.weights, output.entropy))
    tokenizer = load_tokenizer(run.config.model.path)

    def tokens(row: int) -> list[dict[str, Any]]:
        targets = (batch.labels[row] != IGNORE_INDEX).nonzero().squeeze(1).tolist()
        return [
            {
                "text": tokenizer.decode([int(batch.labels[row, at])]),
                "entropy": float(entropy[row, at]),
                "weight": float(weights[row, at]),
            }
            for at in targets
        ]

    moment = {"epoch": epoch, "threshold": run.dropper.threshold, "drop_rate": run.dropper.drop_rate}
    return [{**moment, "tokens": tokens(row)} for row in range(min(PREVIEW_SAMPLES, len(batch.tokens)))]
