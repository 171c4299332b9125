"""Which rows belong to which optimizer step: a pure function of the data, the seed and the step."""

import math
from dataclasses import dataclass
from functools import lru_cache

from entrodrop_tune.data import Row, TrainingData, epoch_rows


@dataclass(frozen=True)
class StepBatch:
    """The global batch of one optimizer step."""

    epoch: int
    rows: list[Row]
    ends_epoch: bool


class BatchSchedule:
    """Cuts each epoch's rows into consecutive global batches; the last one of an epoch may be smaller.

    Args:
        data: the tokenized data.
        seed: seed of the order.
        epochs: epochs of the run.
        global_batch: rows an optimizer step, over all microbatches and processes.
    """

    def __init__(self, data: TrainingData, seed: int, epochs: int, global_batch: int) -> None:
        self._epoch_rows = lru_cache(maxsize=1)(lambda epoch: epoch_rows(data, seed, epoch))
        self.global_batch = global_batch
        # With packing the number of rows can differ from epoch to epoch.
        steps = [math.ceil(len(self._epoch_rows(epoch)) / global_batch) for epoch in range(epochs)]
        self.epoch_ends = [sum(steps[: epoch + 1]) for epoch in range(epochs)]

    @property
    def total_steps(self) -> int:
        return self.epoch_ends[-1]

    def batch(self, step: int) -> StepBatch:
        """The batch of optimizer step ``step``, counted from 0."""
        epoch = next(epoch for epoch, end in enumerate(self.epoch_ends) if step < end)
        begin = self.epoch_ends[epoch - 1] if epoch else 0
        first = (step - begin) * self.global_batch
        rows = self._epoch_rows(epoch)[first : first + self.global_batch]
        return StepBatch(epoch, rows, ends_epoch=step + 1 == self.epoch_ends[epoch])

    def epoch_position(self, step: int) -> float:
        """Epochs done after ``step`` optimizer steps, as a fraction."""
        begin = 0
        for epoch, end in enumerate(self.epoch_ends):
            if step < end:
                return epoch + (step - begin) / (end - begin)
            begin = end
        return float(len(self.epoch_ends))
