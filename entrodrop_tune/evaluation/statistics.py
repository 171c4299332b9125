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
    return float(np.average(np.asarray(values, float), weights=None if weights is None else np.asarray(weights)))


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


@dataclass(frozen=True)
class PairedProportions:
    """The difference of two paired proportions: estimate, 95 % interval, standard error behind it."""

    interval: Interval
    standard_error: float


def paired_proportions(base: ArrayLike, tuned: ArrayLike) -> PairedProportions:
    """``tuned - base`` of yes/no scores over the same items, ``[n]`` each, with Agresti and Min's interval.

    It is Wald's interval after half an item is added to each of the four cells (Agresti and Min, Statistics in
    Medicine 24, 2005). A bootstrap would call the difference exactly zero whenever no item changed.
    """
    base, tuned = np.asarray(base, bool), np.asarray(tuned, bool)
    lost, gained = int((base & ~tuned).sum()) + 0.5, int((~base & tuned).sum()) + 0.5
    n = len(base) + 2
    centre = (gained - lost) / n
    standard_error = float(np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n)
    half = stats.norm.ppf(0.5 + CONFIDENCE / 2) * standard_error
    value = (gained - lost) / len(base)
    interval = Interval(value, max(-1.0, centre - half), min(1.0, centre + half))
    return PairedProportions(interval, standard_error)


def sign_flip_p(
    difference: ArrayLike, clusters: Sequence[str] | None = None, seed: int = 0, flips: int = 20_000
) -> float:
    """Two-sided p of "no difference": how often random signs on the differences give a sum at least as far from zero.

    Args:
        difference: one (weighted) difference an item, ``[n]``.
        clusters: signs are drawn once a cluster, ``[n]``.
        seed: of the signs.
        flips: random sign patterns; the smallest p possible is ``1 / (flips + 1)``.
    """
    sums, _ = _by_cluster(np.asarray(difference, float), np.ones(len(np.asarray(difference))), clusters)
    observed = abs(sums.sum())
    rng, hits, rows = np.random.default_rng(seed), 0, max(1, _CHUNK // len(sums))
    for start in range(0, flips, rows):
        signs = rng.integers(0, 2, (min(rows, flips - start), len(sums)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ sums) >= observed - 1e-12 * max(1.0, observed)).sum())
    return (hits + 1) / (flips + 1)


def mcnemar_p(base: ArrayLike, tuned: ArrayLike) -> float:
    """Exact two-sided McNemar p of paired yes/no scores, ``[n]`` each; 1 when they never differ."""
    base, tuned = np.asarray(base, bool), np.asarray(tuned, bool)
    lost, gained = int((base & ~tuned).sum()), int((~base & tuned).sum())
    if lost + gained == 0:
        return 1.0
    return float(stats.binomtest(gained, lost + gained, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p_values)
    adjusted, running = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted.tolist()


def detectable_effect(standard_error: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference that a two-sided test at ``alpha`` finds with probability ``power``.

    ``standard_error`` is that of the observed difference.
    """
    return float((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * standard_error)


def mean_standard_error(values: ArrayLike, clusters: Sequence[str] | None = None) -> float:
    """Standard error of the mean of ``values``, ``[n]``, over items or clusters; infinite for fewer than two."""
    values = np.asarray(values, float)
    sums, sizes = _by_cluster(values, np.ones_like(values), clusters)
    n = len(sums)
    if n < 2:
        return float("inf")
    residual = sums - values.mean() * sizes
    return float(np.sqrt((residual**2).sum() * n / (n - 1)) / sizes.sum())
