"""How much of what the base model could do is kept: the retention index."""

from dataclasses import dataclass

import numpy as np

from entrodrop_tune.evaluation.results import EvalResults
from entrodrop_tune.evaluation.statistics import RESAMPLES, Interval

# Below this, the base is too close to chance for a ratio to mean anything.
MIN_ABOVE_CHANCE = 0.02


@dataclass(frozen=True)
class Retention:
    """The tuned model's accuracy above chance over the base's, summed over tasks.

    Attributes:
        index: 1 keeps all, 0 falls to chance, above 1 gains; with a 95 % bootstrap interval over paired items.
            ``None`` when the base itself is at chance.
        base_above_chance: the base's mean accuracy above chance over the tasks.
        tasks: the tasks that count: those of the group whose primary metric has a known chance level.
    """

    index: Interval | None
    base_above_chance: float
    tasks: tuple[str, ...]


def retention_index(base: EvalResults, tuned: EvalResults, group: str = "general", seed: int = 0) -> Retention | None:
    """``sum(tuned - chance) / sum(base - chance)`` over the accuracy tasks of ``group`` both evaluated.

    Every task counts the same, whatever its number of items; ``None`` without such a task.
    """
    tasks = [
        name
        for name, task in base.tasks.items()
        if task.group == group and name in tuned.tasks and task.metrics[task.primary].chance is not None
    ]
    if not tasks:
        return None
    rng = np.random.default_rng(seed)
    base_sum, tuned_sum = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    base_mean = tuned_mean = 0.0
    for name in tasks:
        task = base.tasks[name]
        chance = task.metrics[task.primary].chance or 0.0
        before, after = _paired(base, tuned, name, task.primary)
        index = rng.integers(0, len(before), (RESAMPLES, len(before)))
        base_sum += before[index].mean(1) - chance
        tuned_sum += after[index].mean(1) - chance
        base_mean += (before.mean() - chance) / len(tasks)
        tuned_mean += (after.mean() - chance) / len(tasks)
    if base_mean < MIN_ABOVE_CHANCE:
        return Retention(None, float(base_mean), tuple(tasks))
    # A resample whose base falls to chance has no ratio; what is left understates the spread, if anything.
    valid = base_sum > 0
    low, high = np.quantile(tuned_sum[valid] / base_sum[valid], [0.025, 0.975])
    return Retention(Interval(float(tuned_mean / base_mean), float(low), float(high)), float(base_mean), tuple(tasks))


def _paired(base: EvalResults, tuned: EvalResults, task: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    after = {item.doc_hash: item.metrics[metric] for item in tuned.items_of(task)}
    pairs = [(item.metrics[metric], after[item.doc_hash]) for item in base.items_of(task) if item.doc_hash in after]
    values = np.array(pairs, float)
    return values[:, 0], values[:, 1]
