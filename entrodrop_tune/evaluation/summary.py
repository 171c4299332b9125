"""From lm-eval's logged samples to items, and from items to metrics with intervals."""

import math
from typing import Any

from entrodrop_tune.errors import UserError
from entrodrop_tune.evaluation.results import Item, MetricSummary, TaskSummary
from entrodrop_tune.evaluation.statistics import Interval, bootstrap_mean, wilson

_MAX_TEXT = 4000  # characters of a prediction kept
# Monotone functions of bits_per_byte: the same information, and no mean over items.
_REDUNDANT = frozenset({"word_perplexity", "byte_perplexity"})
_LN2 = 0.6931471805599453


class NonFiniteScore(UserError):
    """A model gives likelihoods that are no numbers: nothing can be said of it."""


def item_scores(task: str, samples: list[dict[str, Any]], cluster: str | None) -> list[Item]:
    """One ``Item`` a document from lm-eval's samples (which hold one entry a document and filter).

    A metric is named as in lm-eval, ``metric,filter``, and plain ``metric`` where the task has no filters.
    ``cluster`` names the document's field that marks items from one source.
    """
    items: dict[int, Item] = {}
    for sample in samples:
        doc_id = sample["doc_id"]
        if doc_id not in items:
            items[doc_id] = Item(
                task=task,
                doc_id=doc_id,
                doc_hash=sample["doc_hash"][:16],
                metrics={},
                cluster=str(sample["doc"][cluster]) if cluster else None,
                prediction=_prediction(sample),
                target=str(sample["target"])[:_MAX_TEXT],
            )
        for metric in sample["metrics"]:
            if metric in _REDUNDANT:
                continue
            name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
            value, weight = _scalar(sample[metric])
            items[doc_id].metrics[name] = value
            if weight is not None:
                items[doc_id].weights[name] = weight
    return [items[doc_id] for doc_id in sorted(items)]


def _scalar(value: Any) -> tuple[float, float | None]:
    """A score and its weight: (log-likelihood, bytes) becomes bits a byte, a list of checks their mean."""
    if isinstance(value, tuple):
        log_likelihood, size = value
        return -float(log_likelihood) / (size * _LN2), float(size)
    if isinstance(value, list):
        return sum(map(float, value)) / len(value), float(len(value))
    return float(value), None


def _prediction(sample: dict[str, Any]) -> str | None:
    first = sample["resps"][0][0] if sample["resps"] and sample["resps"][0] else None
    return first[:_MAX_TEXT] if isinstance(first, str) else None


def summarise(
    items: list[Item], higher_is_better: dict[str, bool], chance: dict[str, float], **fields: Any
) -> TaskSummary:
    """Aggregate items: Wilson's interval for yes/no scores, a bootstrap (over clusters, if any) for the rest.

    ``higher_is_better`` and ``chance`` are keyed by the metric's name without filter; ``fields`` are the other
    fields of ``TaskSummary``.

    Raises:
        NonFiniteScore: a score is NaN or infinite.
    """
    _refuse_non_finite(items)
    metrics = {}
    for name in items[0].metrics:
        plain = name.split(",")[0]
        interval = _interval(items, name)
        metrics[name] = MetricSummary(
            value=interval.value,
            ci_low=interval.low,
            ci_high=interval.high,
            n=len(items),
            higher_is_better=higher_is_better[plain],
            chance=chance.get(plain),
        )
    return TaskSummary(n=len(items), metrics=metrics, **fields)


def _refuse_non_finite(items: list[Item]) -> None:
    for item in items:
        for name, value in item.metrics.items():
            if not math.isfinite(value):
                raise NonFiniteScore(
                    f"{item.task}, item {item.doc_id}: {name} is {value}. The model gives non-finite likelihoods: its"
                    " weights are damaged, or overflow in this --dtype (try --dtype fp32)."
                )


def _interval(items: list[Item], name: str) -> Interval:
    values = [item.metrics[name] for item in items]
    labels = [item.cluster or "" for item in items]
    clusters = labels if items[0].cluster is not None and len(set(labels)) < len(labels) else None
    if name in items[0].weights:
        return bootstrap_mean(values, [item.weights[name] for item in items], clusters)
    if not set(values) <= {0.0, 1.0}:
        return bootstrap_mean(values, clusters=clusters)
    if clusters is None:
        return wilson(int(sum(values)), len(values))
    interval = bootstrap_mean(values, clusters=clusters)
    return Interval(interval.value, max(0.0, interval.low), min(1.0, interval.high))
