"""The method's moving parts over a run: curriculum, threshold, adaptive strength, selector, remembered values.

Within one optimizer step threshold and drop rate are frozen, so a token's fate depends on nothing but its own entropy
and its own coin. What the step saw enters the estimate afterwards, in :meth:`TokenDropper.commit`. Where the rule looks
at remembered values (site input, another source, another scope) they change between epochs only.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entrodrop_tune.data import Batch, Sample
from entrodrop_tune.method import (
    IGNORE_INDEX,
    BoundSelector,
    EntropyCache,
    LossOutput,
    QuantileSketch,
    Select,
    TokenSelector,
    corrupt_tokens,
)
from entrodrop_tune.training.config import EntroDropConfig
from entrodrop_tune.training.distributed import World, all_gather_objects, all_reduce_sum
from entrodrop_tune.training.validation import SampleScores


class TokenDropper:
    """Decides, step by step, which tokens count.

    Args:
        config: the ``entrodrop`` section.
        seed: seed of the coins.
        epochs, total_steps: of the whole run, the curriculum's span.
        replacement_id: token whose embedding stands in for dropped input tokens.
    """

    def __init__(self, config: EntroDropConfig, seed: int, epochs: int, total_steps: int, replacement_id: int) -> None:
        self.config = config
        self.curriculum = config.curriculum()
        self.selector = TokenSelector(config.select, seed=seed)
        self.epochs = epochs
        self.total_steps = total_steps
        self.replacement_id = replacement_id
        self.sketch = QuantileSketch()
        self.cache = EntropyCache()
        self.epoch = 0
        self.threshold: float | None = None
        self.candidate_fraction: float | None = None
        self.drop_rate = 0.0
        self.gap: float | None = None  # validation NLL less training NLL, nats
        self._training_nll = torch.zeros(2, dtype=torch.float64)  # sum and tokens since the last validation
        self._step_nll = torch.zeros(2, dtype=torch.float64)  # this rank's, this step
        self._fresh: dict[int, Tensor] = {}  # this epoch's values; the cache shows them from the next epoch on
        self._noise_at: Tensor | None = None  # input tokens whose embedding becomes noise, bool [B, T]

    @property
    def at_input(self) -> bool:
        """Whether tokens are dropped from the input."""
        return self.config.site != "loss"

    @property
    def remembers(self) -> bool:
        """Whether the rule looks at values of earlier epochs."""
        return self.config.remembers

    @property
    def normalizer(self) -> str:
        """The count that the loss is divided by, as an attribute of ``LossOutput``."""
        return self.selector.normalizer

    def begin_step(self, step: int, epoch: int) -> None:
        """Freeze threshold (nats) and drop rate for optimizer step ``step``, counted from 0."""
        self.epoch = epoch
        if not self.selector.uses_threshold:
            return
        progress = self.curriculum.progress(epoch=epoch, epochs=self.epochs, step=step, steps=self.total_steps)
        threshold, rate = self.curriculum.at(progress)
        self.drop_rate = rate * self._strength()
        if self.config.scope == "sample":  # values are ranks within their sample
            self.threshold = self.candidate_fraction = threshold
            return
        known = self.cache if self.remembers else self.sketch
        # Before the first estimate there is nothing to compare with, and nothing is dropped.
        if self.curriculum.unit == "quantile":
            self.threshold, self.candidate_fraction = known.quantile(threshold), threshold
        else:
            self.threshold, self.candidate_fraction = threshold, known.rank(threshold)

    def select(self, batch: Batch) -> Select | None:
        """The rule for ``batch`` at the loss, or None where every target token counts."""
        if self.config.site == "input" or self.config.select == "none":
            return None
        return self.rule(batch)

    def rule(self, batch: Batch) -> Select:
        """What decides on the target tokens of ``batch``, whatever the site."""
        rule = self._bound(batch)
        if not self.remembers:
            return rule
        remembered = self._remembered(batch).flatten()
        return lambda entropy, nll, rows: ~rule.dropped(remembered[rows], rows)

    def corrupt(self, batch: Batch) -> Tensor:
        """The input tokens of ``batch`` with the dropped ones replaced, ``[B, T]`` (the loss stays on all targets)."""
        self._noise_at = None
        if not self.at_input:
            return batch.tokens
        remembered = self._remembered(batch).flatten()
        rows = torch.arange(remembered.numel(), device=remembered.device)
        dropped = self._bound(batch).dropped(remembered, rows).view(batch.tokens.shape)
        if self.config.replacement == "noise":
            # Position t predicts token t + 1: that is the token whose entropy was low, and whose embedding goes.
            self._noise_at = F.pad(dropped[:, :-1], (1, 0))
            return batch.tokens
        return corrupt_tokens(batch.tokens, dropped, self.replacement_id)

    def attach(self, embedding: nn.Module) -> None:
        """Let ``replacement: noise`` act on the token embedding."""
        if self.at_input and self.config.replacement == "noise":
            embedding.register_forward_hook(self._add_noise)

    def observe(self, batch: Batch, output: LossOutput) -> None:
        """Take in one microbatch's values."""
        valid = batch.labels.flatten() != IGNORE_INDEX
        values = self.selector.statistic(output.entropy, output.nll)
        nll = output.nll[valid]
        nll = nll[nll.isfinite()]  # a step that is skipped must not spoil the mean
        self._step_nll += torch.stack([nll.double().sum(), torch.tensor(nll.numel(), device=nll.device)]).cpu()
        if not self.remembers:
            self.sketch.update(values[valid])
        else:
            self._remember(batch, values.masked_fill(~valid, torch.nan))

    def commit(self, world: World) -> None:
        """Merge what all ranks saw in this step into the running estimates."""
        all_reduce_sum(self.sketch.pending, world)
        self.sketch.commit()
        self._training_nll += all_reduce_sum(self._step_nll, world)
        self._step_nll = torch.zeros_like(self._step_nll)

    def see_validation(self, nll: float) -> None:
        """Compare a validation with the training since the one before: what adaptive strength goes by."""
        total, tokens = self._training_nll.tolist()
        if tokens and math.isfinite(nll):
            self.gap = nll - total / tokens
        self._training_nll.zero_()

    def prefill(self, samples: Sequence[Sample], scores: Sequence[SampleScores]) -> None:
        """Epoch 0 has no epoch before it: take values from a pass without gradients."""
        for sample, score in zip(samples, scores, strict=True):
            values = torch.full((len(sample),), torch.nan)
            entropy, nll = (torch.from_numpy(value).float() for value in (score.entropy, score.nll))
            values[torch.from_numpy(score.positions)] = self.selector.statistic(entropy, nll)
            self.cache.put(sample.id, values)

    def end_epoch(self, world: World) -> None:
        """Show this epoch's values to the next one, on every rank."""
        self._share(world)
        for sample_id, values in self._fresh.items():
            before = self.cache.get(sample_id)
            if self.config.source == "base" and before is not None:
                continue
            if self.config.source == "average" and before is not None:
                values = (before + values.float()) / 2
            self.cache.put(sample_id, values)
        self._fresh = {}

    def state_dict(self, world: World) -> dict[str, Tensor]:
        """Everything that a resumed run needs (collective: ranks pool the entropies they measured in this epoch)."""
        self._share(world)
        state = {f"sketch.{name}": torch.as_tensor(value) for name, value in self.sketch.state_dict().items()}
        state |= {f"cache.{name}": value for name, value in self.cache.state_dict().items()}
        state |= {f"fresh.{sample_id}": values for sample_id, values in self._fresh.items()}
        state["training_nll"] = self._training_nll.clone()
        if self.gap is not None:
            state["gap"] = torch.tensor(self.gap, dtype=torch.float64)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        self.sketch.load_state_dict(part("sketch."))
        self.cache.load_state_dict(part("cache."))
        self._fresh = {int(sample_id): values for sample_id, values in part("fresh.").items()}
        self._training_nll = state["training_nll"]
        self.gap = float(state["gap"]) if "gap" in state else None

    def _strength(self) -> float:
        """What the scheduled drop rate is multiplied by."""
        if self.config.full_at_gap is None:
            return 1.0
        return min(max((self.gap or 0.0) / self.config.full_at_gap, 0.0), 1.0)

    def _bound(self, batch: Batch) -> BoundSelector:
        rule = self.selector.at(self.epoch, self.threshold, self.drop_rate, self.candidate_fraction)
        return rule.bind(batch.sample_ids.flatten(), batch.positions.flatten())

    def _share(self, world: World) -> None:
        if self.remembers:
            self._fresh = {key: value for part in all_gather_objects(self._fresh, world) for key, value in part.items()}

    def _remembered(self, batch: Batch) -> Tensor:
        """What the rule compares, ``[B, T]``; nan on tokens that are no target or were never seen."""
        values = torch.full(batch.tokens.shape, torch.nan, device=batch.tokens.device)
        for row, sample_id, at in _samples_in(batch):
            known = self.cache.get(sample_id)
            if known is not None:
                known = _ranks(known) if self.config.scope == "sample" else known
                values[row, at] = known.to(values.device)
        return values.masked_fill(batch.labels == IGNORE_INDEX, torch.nan)

    def _remember(self, batch: Batch, values: Tensor) -> None:
        values = values.view(batch.tokens.shape).detach().half().cpu()
        for row, sample_id, at in _samples_in(batch):
            measured = values[row, at]
            if measured.isfinite().any():  # a row that only keeps a collective company measures nothing
                self._fresh[sample_id] = measured

    def _add_noise(self, embedding: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if self._noise_at is None or not embedding.training:
            return output
        noise = torch.randn_like(output) * output.detach().float().std().to(output.dtype)
        return torch.where(self._noise_at.unsqueeze(-1), noise, output)


def _samples_in(batch: Batch) -> Iterator[tuple[int, int, slice]]:
    """``(row, sample id, where in the row)`` for each sample of a batch; one that is there twice comes twice."""
    for row, (ids, positions) in enumerate(zip(batch.sample_ids.cpu(), batch.positions.cpu(), strict=True)):
        starts = (positions == 0).nonzero().squeeze(1).tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            if ids[start] >= 0:
                yield row, int(ids[start]), slice(start, end)


def _ranks(values: Tensor) -> Tensor:
    """The fraction of a sample's finite values below each, in [0, 1); nan stays nan."""
    finite = values[values.isfinite()].sort().values
    below = torch.searchsorted(finite, values.nan_to_num(0.0)) / max(finite.numel(), 1)
    return below.masked_fill(values.isnan(), torch.nan)
