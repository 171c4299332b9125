"""Before and after, item by item: deltas with paired intervals, tests, group means and the retention index."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from entrodrop_tune.errors import UserError
from entrodrop_tune.evaluation.groups import GroupSummary, group_summaries
from entrodrop_tune.evaluation.results import EvalResults, Item, TaskSummary
from entrodrop_tune.evaluation.retention import Retention, retention_index
from entrodrop_tune.evaluation.statistics import (
    detectable_effect,
    holm,
    mcnemar_p,
    mean_standard_error,
    paired_bootstrap,
    paired_proportions,
    sign_flip_p,
    weighted_mean,
)
from entrodrop_tune.evaluation.training_cost import TrainingCost, training_cost

# Settings that must agree for two scores to be comparable.
_MUST_AGREE = ("seed", "dtype", "batch_size", "chat_template", "chat_template_hash", "backend", "model_args")
ALPHA = 0.05


@dataclass(frozen=True)
class Row:
    """One metric of one task, base against tuned, over the items both have.

    ``delta`` is tuned minus base with a 95 % interval. Yes/no scores: Agresti-Min interval, exact McNemar ``p``. Other
    scores, and items that share a source: bootstrap interval, sign-flip ``p``, both over clusters where there are any.
    ``p_holm`` is adjusted over the tasks' primary metrics, and ``None`` for the other metrics. ``detectable``: the
    smallest true delta that 80 % of such comparisons would find.
    """

    task: str
    group: str
    metric: str
    primary: bool
    higher_is_better: bool
    base: float
    tuned: float
    delta: float
    ci_low: float
    ci_high: float
    p: float
    p_holm: float | None
    test: str
    n: int
    detectable: float

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference shown`` (adjusted p where there is one, at 5 %)."""
        if (self.p if self.p_holm is None else self.p_holm) >= ALPHA or self.delta == 0:
            return "no difference shown"
        return "better" if (self.delta > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """What ``compare_evaluations`` finds; ``cost`` is what the tuned model's run used, where its folder is found."""

    base: str
    tuned: str
    cost: TrainingCost | None
    rows: tuple[Row, ...]
    groups: tuple[GroupSummary, ...]
    retention: Retention | None
    warnings: tuple[str, ...]

    def primary_rows(self) -> tuple[Row, ...]:
        """The rows of the tasks' primary metrics."""
        return tuple(row for row in self.rows if row.primary)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready (``null`` for an infinite detectable effect)."""
        rows = [{**asdict(row), "verdict": row.verdict, "detectable": _finite(row.detectable)} for row in self.rows]
        return {
            "schema": 1,
            "base": self.base,
            "tuned": self.tuned,
            "training": asdict(self.cost) if self.cost else None,
            "rows": rows,
            "groups": [asdict(group) for group in self.groups],
            "retention": asdict(self.retention) if self.retention else None,
            "warnings": list(self.warnings),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def compare_evaluations(base: EvalResults, tuned: EvalResults, seed: int = 0) -> Comparison:
    """Compare two evaluations of the same tasks, item by item.

    Raises:
        UserError: they share no task, or a shared task has no item in common.
    """
    shared = [name for name in base.tasks if name in tuned.tasks]
    if not shared:
        raise UserError(
            f"{base.model.path} and {tuned.model.path} were evaluated on different tasks: use the same --suite"
        )
    rows = [row for name in shared for row in _task_rows(base, tuned, name, seed)]
    adjusted = iter(holm([row.p for row in rows if row.primary]))
    rows = [replace(row, p_holm=next(adjusted)) if row.primary else row for row in rows]
    return Comparison(
        base=base.model.path,
        tuned=tuned.model.path,
        cost=training_cost(tuned.model.path),
        rows=tuple(rows),
        groups=tuple(group_summaries(rows, base)),
        retention=retention_index(base, tuned, seed=seed),
        warnings=tuple(_warnings(base, tuned, shared)),
    )


def _task_rows(base: EvalResults, tuned: EvalResults, task: str, seed: int) -> list[Row]:
    after = {item.doc_hash: item for item in tuned.items_of(task)}
    pairs = [(item, after[item.doc_hash]) for item in base.items_of(task) if item.doc_hash in after]
    if not pairs:
        raise UserError(f"{task}: the two evaluations have no item in common (other data or --limit?)")
    summary = base.tasks[task]
    shared = [metric for metric in summary.metrics if metric in tuned.tasks[task].metrics]
    return [_row(pairs, task, summary, metric, seed) for metric in shared]


def _row(pairs: Sequence[tuple[Item, Item]], task: str, summary: TaskSummary, metric: str, seed: int) -> Row:
    before = np.array([item.metrics[metric] for item, _ in pairs])
    after = np.array([item.metrics[metric] for _, item in pairs])
    weights = np.array([item.weights.get(metric, 1.0) for item, _ in pairs])
    labels = [item.cluster for item, _ in pairs]
    clusters = [str(label) for label in labels] if labels[0] is not None and len(set(labels)) < len(labels) else None
    if clusters is None and _binary(before) and _binary(after):
        proportions = paired_proportions(before, after)
        delta, error = proportions.interval, proportions.standard_error
        test, p = "McNemar", mcnemar_p(before, after)
    else:
        shares = weights / weights.mean()
        delta = paired_bootstrap(before, after, weights, clusters, seed)
        # A ratio's residuals: each difference from the ratio, not each term from their mean (delta method).
        error = mean_standard_error((after - before - delta.value) * shares, clusters)
        test, p = "sign flip", sign_flip_p((after - before) * shares, clusters, seed)
    return Row(
        task=task,
        group=summary.group,
        metric=metric,
        primary=metric == summary.primary,
        higher_is_better=summary.metrics[metric].higher_is_better,
        base=weighted_mean(before, weights),
        tuned=weighted_mean(after, weights),
        delta=delta.value,
        ci_low=delta.low,
        ci_high=delta.high,
        p=p,
        p_holm=None,
        test=test,
        n=len(pairs),
        detectable=detectable_effect(error),
    )


def _binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0, 1)).all())


def _warnings(base: EvalResults, tuned: EvalResults, shared: Sequence[str]) -> list[str]:
    found = []
    for name in _MUST_AGREE:
        before, after = base.settings.get(name), tuned.settings.get(name)
        if before != after:
            found.append(f"{name} differs: {before} before, {after} after")
    for name in sorted(base.versions.keys() | tuned.versions.keys()):
        if base.versions.get(name) != tuned.versions.get(name):
            found.append(f"version of {name} differs: {base.versions.get(name)} and {tuned.versions.get(name)}")
    for task in shared:
        before_task, after_task = base.tasks[task], tuned.tasks[task]
        for field in ("version", "num_fewshot", "chat_template"):
            if getattr(before_task, field) != getattr(after_task, field):
                found.append(f"{task}: {field} differs")
        if before_task.data.get("sha256") != after_task.data.get("sha256"):
            found.append(f"{task}: the items differ; only those in common are compared")
    missing = (base.tasks.keys() | tuned.tasks.keys()) - set(shared)
    if missing:
        found.append(f"in one evaluation only: {', '.join(sorted(missing))}")
    return found
