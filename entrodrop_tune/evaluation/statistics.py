"""Intervals and tests for scores of items: Wilson, bootstrap (plain, paired, clustered), McNemar, Holm, power."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 4000
_CHUNK = 2_000_000  # resampled values held at once


@dataclass(frozen=True)
class Interval:
    """A point estimate with a two-sided 95 % confidence interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """A proportion with Wilson's score interval (scipy's). ``n`` must be positive."""
    result = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / n, float(result.low), float(result.high))


def weighted_mean(values: ArrayLike, weights: ArrayLike | None = None) -> float:
    """``sum(v w) / sum(w)``; plain mean without weights."""
    return float(np.average(np.asarray(values, float), weights=weights))


def bootstrap_mean(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
) -> Interval:
    """A (ratio) mean with a percentile bootstrap interval.

    Args:
        values: one score an item, ``[n]``.
        weights: denominators of a ratio metric, ``[n]``: the estimate is ``sum(v w) / sum(w)``.
        clusters: items that share a source share a label, ``[n]``; whole clusters are resampled then.
        seed: of the resampling.
    """
    values = np.asarray(values, float)
    ones = np.ones_like(values) if weights is None else np.asarray(weights, float)
    numerator, denominator = _by_cluster(values * ones, ones, clusters)
    value = float(numerator.sum() / denominator.sum())
    if len(numerator) < 2 or np.ptp(numerator / denominator) == 0:
        return Interval(value, value, value)
    means = _resampled_ratios(numerator, denominator, seed)
    # Percentiles of few units are too narrow by sqrt((n-1)/n) and by normal where Student's t is due.
    low, high = np.quantile(means, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    widen = _small_sample_factor(len(numerator))
    return Interval(value, value - (value - low) * widen, value + (high - value) * widen)


def _by_cluster(numerator: NDArray, denominator: NDArray, clusters: Sequence[str] | None) -> tuple[NDArray, NDArray]:
    if clusters is None:
        return numerator, denominator
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, numerator), np.bincount(index, denominator)


def _resampled_ratios(numerator: NDArray, denominator: NDArray, seed: int) -> NDArray:
    rng, n = np.random.default_rng(seed), len(numerator)
    ratios = []
    rows = max(1, _CHUNK // n)
    for start in range(0, RESAMPLES, rows):
        index = rng.integers(0, n, (min(rows, RESAMPLES - start), n))
        ratios.append(numerator[index].sum(1) / denominator[index].sum(1))
    return np.concatenate(ratios)


def _small_sample_factor(n: int) -> float:
    tail = 0.5 + CONFIDENCE / 2
    return float(stats.t.ppf(tail, n - 1) / stats.norm.ppf(tail) * np.sqrt(n / (n - 1)))


def paired_bootstrap(
    base: ArrayLike,
    tuned: ArrayLike,
    weights: ArrayLike | None = None,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
) -> Interval:
    """``tuned - base`` over the same items, with a bootstrap interval over items (or clusters of them)."""
    difference = np.asarray(tuned, float) - np.asarray(base, float)
    return bootstrap_mean(difference, weights, clusters, seed)
