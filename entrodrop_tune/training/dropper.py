"""The method's moving parts over a run: curriculum, online threshold, selector, entropy cache.

Within one optimizer step threshold and drop rate are frozen, so a token's fate depends on nothing but its own entropy
and its own coin. What the step saw enters the estimate afterwards, in :meth:`TokenDropper.commit`.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entrodrop_tune.data import Batch, Sample
from entrodrop_tune.method import (
    DROP_MODES,
    IGNORE_INDEX,
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
        self._fresh: dict[int, Tensor] = {}  # this epoch's entropies; the cache shows them from the next epoch on
        self._noise_at: Tensor | None = None  # input tokens whose embedding becomes noise, bool [B, T]

    @property
    def at_input(self) -> bool:
        """Whether tokens are dropped from the input."""
        return self.config.site != "loss" and self.config.select != "none"

    @property
    def normalizer(self) -> str:
        """What the loss is divided by: ``kept`` tokens, or ``valid`` ones for soft weights."""
        return self.selector.normalizer

    def begin_step(self, step: int, epoch: int) -> None:
        """Freeze threshold (nats) and drop rate for optimizer step ``step``, counted from 0."""
        self.epoch = epoch
        if self.config.select not in DROP_MODES:  # nothing, or weights that know no threshold
            return
        progress = self.curriculum.progress(epoch=epoch, epochs=self.epochs, step=step, steps=self.total_steps)
        threshold, self.drop_rate = self.curriculum.at(progress)
        # Before the first estimate there is nothing to compare with, and nothing is dropped.
        if self.curriculum.unit == "quantile":
            self.threshold, self.candidate_fraction = self.sketch.quantile(threshold), threshold
        else:
            self.threshold, self.candidate_fraction = threshold, self.sketch.rank(threshold)

    def select(self, batch: Batch) -> Select | None:
        """The rule for ``batch`` at the loss, or None where every target token counts."""
        if self.config.site == "input" or self.config.select == "none":
            return None
        return self._rule(batch)

    def weights(self, batch: Batch, entropy: Tensor, nll: Tensor, rows: Tensor) -> Tensor:
        """What the rule gives the flat ``rows`` of ``batch``: bool (kept) or a weight in [0, 1] a row."""
        return self._rule(batch)(entropy[rows], nll[rows], rows)

    def corrupt(self, batch: Batch) -> Tensor:
        """The input tokens of ``batch`` with the dropped ones replaced, ``[B, T]`` (the loss stays on all targets)."""
        self._noise_at = None
        if not self.at_input:
            return batch.tokens
        entropy = self._cached_entropy(batch).flatten()
        rows = entropy.isfinite().nonzero().squeeze(1)  # targets whose entropy the previous epoch measured
        dropped = torch.zeros_like(entropy, dtype=torch.bool)
        # Rules that read the NLL are refused for this site, so zeros do.
        dropped[rows] = self.weights(batch, entropy, torch.zeros_like(entropy), rows) == 0
        dropped = dropped.view(batch.tokens.shape)
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
        values = output.nll if self.selector.statistic == "nll" else output.entropy
        self.sketch.update(values[valid])
        if self.at_input:
            self._remember(batch, output.entropy.masked_fill(~valid, torch.nan))

    def commit(self, world: World) -> None:
        """Merge what all ranks saw in this step into the running estimate."""
        all_reduce_sum(self.sketch.pending, world)
        self.sketch.commit()

    def prefill(self, samples: Sequence[Sample], scores: Sequence[SampleScores]) -> None:
        """Epoch 0 has no previous epoch: take entropies from a pass without gradients."""
        for sample, score in zip(samples, scores, strict=True):
            entropy = torch.full((len(sample),), torch.nan)
            entropy[torch.from_numpy(score.positions)] = torch.from_numpy(score.entropy).float()
            self.cache.put(sample.id, entropy)
            self.sketch.update(entropy)
        self.sketch.commit()

    def end_epoch(self, world: World) -> None:
        """Show this epoch's entropies to the next one, on every rank."""
        self._share(world)
        for sample_id, entropy in self._fresh.items():
            self.cache.put(sample_id, entropy)
        self._fresh = {}

    def state_dict(self, world: World) -> dict[str, Tensor]:
        """Everything that a resumed run needs (collective: ranks pool the entropies they measured in this epoch)."""
        self._share(world)
        state = {f"sketch.{name}": torch.as_tensor(value) for name, value in self.sketch.state_dict().items()}
        state |= {f"cache.{name}": value for name, value in self.cache.state_dict().items()}
        state |= {f"fresh.{sample_id}": entropy for sample_id, entropy in self._fresh.items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        self.sketch.load_state_dict(part("sketch."))
        self.cache.load_state_dict(part("cache."))
        self._fresh = {int(sample_id): entropy for sample_id, entropy in part("fresh.").items()}

    def _rule(self, batch: Batch) -> Select:
        rule = self.selector.at(self.epoch, self.threshold, self.drop_rate, self.candidate_fraction)
        return rule.bind(batch.sample_ids.flatten(), batch.positions.flatten())

    def _share(self, world: World) -> None:
        if self.at_input:
            self._fresh = {key: value for part in all_gather_objects(self._fresh, world) for key, value in part.items()}

    def _cached_entropy(self, batch: Batch) -> Tensor:
        entropy = torch.full(batch.tokens.shape, torch.nan, device=batch.tokens.device)
        for row, sample_id, at in _samples_in(batch):
            known = self.cache.get(sample_id)
            if known is not None:
                entropy[row, at] = known.float().to(entropy.device)[batch.positions[row, at]]
        return entropy.masked_fill(batch.labels == IGNORE_INDEX, torch.nan)

    def _remember(self, batch: Batch, entropy: Tensor) -> None:
        entropy = entropy.view(batch.tokens.shape).detach().half().cpu()
        for row, sample_id, at in _samples_in(batch):
            measured = entropy[row, at.cpu()]
            if measured.isfinite().any():  # a row that only keeps a collective company measures nothing
                self._fresh[sample_id] = measured

    def _add_noise(self, embedding: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if self._noise_at is None or not embedding.training:
            return output
        noise = torch.randn_like(output) * output.detach().float().std().to(output.dtype)
        return torch.where(self._noise_at.unsqueeze(-1), noise, output)


def _samples_in(batch: Batch) -> Iterator[tuple[int, int, Tensor]]:
    """``(row, sample id, bool [T] where that sample lies)`` for each sample of a batch."""
    for row, ids in enumerate(batch.sample_ids):
        for sample_id in ids.unique().tolist():
            if sample_id >= 0:
                yield row, sample_id, ids == sample_id
