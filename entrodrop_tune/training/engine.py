"""The training loop.

train -> optimizer_step (step.py) -> LossModel.forward (loss_model.py) -> linear_cross_entropy (method)
"""

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torchtune.training.metric_logging import MetricLoggerInterface
from tqdm import tqdm

from entrodrop_tune.training.build import Run
from entrodrop_tune.training.checkpoint import CheckpointStore
from entrodrop_tune.training.distributed import barrier
from entrodrop_tune.training.journal import Journal, RunRecord, peak_memory
from entrodrop_tune.training.step import StepResult, optimizer_step
from entrodrop_tune.training.validation import score_samples

FINISHED, STOPPED_EARLY, INTERRUPTED = "finished", "stopped_early", "interrupted"


class TrainingFailure(RuntimeError):
    """Training cannot go on; the message says at which step, on which samples, and what to change."""


class Engine:
    """One run: takes steps, validates, saves, and can stop and go on at any step.

    Args:
        run: the parts.
        store: where checkpoints go.
        record: ``run.json``.
        metric_logger: gets each step's metrics too.
    """

    def __init__(
        self, run: Run, store: CheckpointStore, record: RunRecord, metric_logger: MetricLoggerInterface | None
    ) -> None:
        self.run = run
        self.config = run.config
        self.world = run.world
        self.progress = run.state.progress
        self.store = store
        self.record = record
        self.metric_logger = metric_logger
        self.metrics = Journal(store.output_dir / "metrics.jsonl")
        self.validations = Journal(store.output_dir / "validation.jsonl")
        self.stop_requested = False

    def train(self) -> str:
        """Train to the end or the first reason to stop; returns ``finished``, ``stopped_early`` or ``interrupted``."""
        run, progress = self.run, self.progress
        if progress.step == 0:
            self._validate()
            self._fill_entropy_cache()
        with self._signals(), self._bar() as bar:
            while progress.step < run.total_steps:
                batch = run.schedule.batch(progress.step)
                _seed_step(self.config.seed, progress.step, self.world.rank)
                run.dropper.begin_step(progress.step, batch.epoch)
                result = optimizer_step(
                    run.model,
                    run.optimizer,
                    batch.rows,
                    run.dropper,
                    batch_size=self.config.batch_size,
                    pad_id=run.pad_id,
                    clip_grad_norm=self.config.clip_grad_norm,
                    in_backward=self.config.optimizer_in_bwd,
                    world=self.world,
                    offload=run.offload,
                    stop_requested=lambda: self.stop_requested,
                )
                self._check_finite(result, batch.rows)
                self._log_step(result, bar)
                run.lr_scheduler.step()
                progress.step += 1
                progress.tokens += result.valid
                progress.skipped_steps += not result.updated
                if batch.ends_epoch:
                    run.dropper.end_epoch(self.world)

                last, due = progress.step == run.total_steps, self._validation_is_due(progress.step)
                if due:
                    self._validate()
                give_up = self._out_of_patience()
                save = (
                    _every(self.config.checkpoint.every_n_steps, progress.step) or progress.best_step == progress.step
                )
                if batch.ends_epoch or last or give_up or result.stop or save:
                    self._save(then_validate=last and not due)
                if give_up:
                    return STOPPED_EARLY
                if result.stop and not last:
                    return INTERRUPTED
        return FINISHED

    def go_on_from(self, step: int | None) -> None:
        """Restore checkpoint ``step`` (None: nothing was saved yet) and forget what was written after it."""
        if step is not None:
            self.run.state.restore(self.store.path(step), self.world)
            self.progress = self.run.state.progress
        if self.world.is_main:
            written_before = -1 if step is None else step
            self.store.forget_after(written_before)
            self.metrics.truncate_after(written_before, every_step=True)
            # The validation that `max_steps` added at its end is no part of a longer run.
            stays = self._validation_is_due(written_before) or written_before == self.run.total_steps
            self.validations.truncate_after(written_before if stays else written_before - 1)
        barrier(self.world)

    def summary(self) -> dict[str, Any]:
        """The run in a few numbers, for ``run.json`` and the closing line."""
        progress = self.progress
        return {
            "steps": progress.step,
            "epochs": self.run.schedule.epoch_position(progress.step),
            "tokens": progress.tokens,
            "skipped_steps": progress.skipped_steps,
            "metric": self.config.validation.metric,
            "best_step": progress.best_step,
            "best_value": progress.best_value,
        }

    # -- the parts of the loop

    def _validation_is_due(self, step: int) -> bool:
        """Whether the run validates after ``step``, however far it is to go."""
        return step in (0, *self.run.schedule.epoch_ends) or _every(self.config.validation.every_n_steps, step)

    def _validate(self) -> None:
        if not self.run.data.validation:
            return
        progress = self.progress
        values = self.run.validator.run(self.run.model, self._progress_bar("validating"))
        self.run.dropper.see_validation(values["nll"])
        epoch = self.run.schedule.epoch_position(progress.step)
        if self.world.is_main:
            self.validations.append({"step": progress.step, "epoch": epoch, **values})
            tqdm.write(
                f"epoch {epoch:6.2f}  validation nll {values['nll']:.4f}"
                f"  low-entropy half {values['nll_low_entropy']:.4f}"
                f"  high-entropy half {values['nll_high_entropy']:.4f}  token accuracy {values['token_accuracy']:.3f}"
            )
        if progress.step == 0:  # the untouched model is the yardstick, not a candidate for `best`
            return
        value = values[self.config.validation.metric]
        gain = (value - progress.best_value) if progress.best_value is not None else -math.inf
        if self.config.validation.metric == "token_accuracy":
            gain = -gain if progress.best_value is not None else -math.inf
        if gain < -self.config.validation.min_delta:
            progress.best_step, progress.best_value, progress.validations_since_best = progress.step, value, 0
        else:
            progress.validations_since_best += 1

    def _out_of_patience(self) -> bool:
        patience = self.config.validation.early_stopping_patience
        return patience is not None and self.progress.validations_since_best >= patience

    def _fill_entropy_cache(self) -> None:
        """A rule that looks at remembered values needs some before the first pass: one without gradients makes them."""
        if not self.run.dropper.remembers:
            return
        samples = [*self.run.data.train, *self.run.data.replay]
        size = self.run.validator.batch_size
        scores = score_samples(
            self.run.model,
            samples,
            size,
            self.world,
            self.run.pad_id,
            self._progress_bar("measuring entropy"),
        )
        self.run.dropper.prefill(samples, scores)

    def _check_finite(self, result: StepResult, rows: list) -> None:
        if result.finite or self.config.on_nonfinite == "skip":
            return
        ids = [sample.id for row in rows for sample in row]
        raise TrainingFailure(
            f"loss or gradient is not finite at step {self.progress.step + 1} (loss {result.loss}, gradient norm"
            f" {result.grad_norm}; sample ids {ids}). The last checkpoint is intact. Lower optimizer.lr, set"
            " clip_grad_norm, use dtype=fp32, or skip such steps with on_nonfinite=skip."
        )

    def _log_step(self, result: StepResult, bar: tqdm) -> None:
        dropper, step = self.run.dropper, self.progress.step + 1
        row = {
            "step": step,
            "epoch": self.run.schedule.epoch_position(step),
            "loss": result.loss,
            "nll_all": result.nll_all,
            "kept_fraction": result.kept / max(result.valid, 1),
            "entropy_mean": result.entropy_mean,
            "threshold": dropper.threshold,
            "drop_rate": dropper.drop_rate,
            "lr": float(self.run.lr_scheduler.get_last_lr()[0]),
            "tokens": result.valid,
            "tokens_per_second": result.valid / result.seconds,
            "peak_memory_bytes": peak_memory(self.world.device),
            "grad_norm": result.grad_norm,
        }
        if not self.world.is_main:
            return
        self.metrics.append(row)
        if self.metric_logger is not None:
            numbers = {key: value for key, value in row.items() if value is not None}
            self.metric_logger.log_dict(numbers, step=step)
        threshold = "-" if dropper.threshold is None else f"{dropper.threshold:.2f}"
        bar.set_postfix_str(
            f"loss {result.loss:.3f}, kept {row['kept_fraction']:.0%}, threshold {threshold} nats,"
            f" drop rate {dropper.drop_rate:.2f}, {row['tokens_per_second']:.0f} tokens/s",
            refresh=False,
        )
        bar.update()

    def _save(self, then_validate: bool) -> None:
        """Save a checkpoint; ``then_validate``: at the end of ``max_steps``, with a state that knows nothing of it, so
        that a run that goes on from there equals one that never stopped.
        """
        progress, config = self.progress, self.config
        with self.store.disk_trouble_explained(progress.step):
            snapshot = self.run.state.gather(self.world, self.store.shards(progress.step))
        best_to_go_on_with = progress.best_step
        if then_validate:
            self._validate()
        if self.world.is_main:
            self.store.save(progress.step, partial(snapshot.write, config=config))
            self.store.point("last", progress.step)
            if progress.best_step is not None and self.store.path(progress.best_step).exists():
                self.store.point("best", progress.best_step)
            self.store.prune(config.checkpoint.keep_last, {best_to_go_on_with, self.store.pointed("best")})
        barrier(self.world)

    # -- what surrounds it

    def _bar(self) -> tqdm:
        return tqdm(
            total=self.run.total_steps,
            initial=self.progress.step,
            desc="training",
            unit="step",
            disable=not self.world.is_main,
            dynamic_ncols=True,
        )

    def _progress_bar(self, description: str):
        return partial(tqdm, desc=description, unit="batch", leave=False, disable=not self.world.is_main)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a save at the end of the step; a second SIGINT interrupts at once."""

        def request(number: int, _frame: Any) -> None:
            if self.stop_requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_requested = True

        before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _every(period: int | None, step: int) -> bool:
    return period is not None and step % period == 0


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout and noise follow from (seed, step, rank) alone, so a resumed step draws what the first one drew."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + rank) % 2**63)
