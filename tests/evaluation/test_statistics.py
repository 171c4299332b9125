"""Intervals cover what they claim on simulated data; tests agree with scipy and statsmodels."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from entrodrop_tune.evaluation import statistics
from entrodrop_tune.evaluation.statistics import (
    bootstrap_mean,
    detectable_effect,
    holm,
    mcnemar_p,
    mean_standard_error,
    paired_bootstrap,
    paired_proportions,
    sign_flip_p,
    wilson,
)

SIMULATIONS = 1000


@pytest.fixture
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)


def coverage(simulate, truth, simulations=SIMULATIONS):
    """Share of intervals from ``simulate(rng, i)`` that contain ``truth``."""
    hits = 0
    for i in range(simulations):
        interval = simulate(np.random.default_rng([7, i]), i)
        hits += interval.low <= truth <= interval.high
    return hits / simulations


@pytest.mark.parametrize(("successes", "n"), [(0, 16), (3, 16), (16, 16), (57, 164)])
def test_wilson_is_statsmodels(successes, n):
    interval = wilson(successes, n)
    assert (interval.low, interval.high) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-9)
    assert interval.value == successes / n


def test_wilson_covers():
    assert 0.93 <= coverage(lambda rng, i: wilson(int(rng.binomial(100, 0.3)), 100), 0.3) <= 0.97


@pytest.mark.parametrize("n", [16, 48, 100])
def test_bootstrap_covers_the_mean(fewer_resamples, n):
    assert 0.93 <= coverage(lambda rng, i: bootstrap_mean(rng.normal(1, 2, n), seed=i), 1.0) <= 0.97


def test_bootstrap_covers_a_skewed_mean(fewer_resamples):
    """Log-likelihoods are skewed; gamma with shape 4 has skewness 1."""
    assert 0.93 <= coverage(lambda rng, i: bootstrap_mean(rng.gamma(4, 1, 64), seed=i), 4.0) <= 0.97


def test_bootstrap_covers_a_ratio(fewer_resamples):
    """Bits a byte: the sum of nats over the sum of bytes, where long items are harder."""
    sizes = np.arange(50, 400)

    def simulate(rng, i):
        size = rng.choice(sizes, 80)
        return bootstrap_mean(rng.normal(0.5 + size / 800, 0.2), weights=size, seed=i)

    truth = (sizes * (0.5 + sizes / 800)).sum() / sizes.sum()
    assert 0.93 <= coverage(simulate, truth) <= 0.97


def clustered(rng):
    """20 sources of 5 items; items share most of their source's deviation."""
    labels = np.repeat(np.arange(20), 5)
    return rng.normal(0, 1, 20)[labels] + rng.normal(0, 0.5, 100), [str(label) for label in labels]


def test_clusters_are_needed_and_enough(fewer_resamples):
    def simulate(with_clusters):
        def interval(rng, i):
            values, labels = clustered(rng)
            return bootstrap_mean(values, clusters=labels if with_clusters else None, seed=i)

        return interval

    assert 0.93 <= coverage(simulate(True), 0.0) <= 0.97
    assert coverage(simulate(False), 0.0) < 0.75


def paired_scores(rng, n=100):
    """Yes/no before and after: 40 % right before; a right one is lost in 10 %, a wrong one gained in 15 %."""
    base = rng.random(n) < 0.4
    tuned = np.where(base, rng.random(n) < 0.9, rng.random(n) < 0.15)
    return base, tuned


def test_paired_proportions_cover():
    truth = 0.6 * 0.15 - 0.4 * 0.1
    assert 0.93 <= coverage(lambda rng, i: paired_proportions(*paired_scores(rng)).interval, truth) <= 0.97


def test_paired_proportions_is_wald_after_half_an_item_a_cell():
    base = [1] * 30 + [1] * 4 + [0] * 9 + [0] * 57
    tuned = [1] * 30 + [0] * 4 + [1] * 9 + [0] * 57
    found = paired_proportions(base, tuned)
    n, lost, gained = 102, 4.5, 9.5
    variance = (gained / n + lost / n - ((gained - lost) / n) ** 2) / n
    assert found.interval.value == pytest.approx(0.05)
    assert found.standard_error == pytest.approx(variance**0.5)
    assert found.interval.high == pytest.approx((gained - lost) / n + 1.959964 * variance**0.5)


def test_no_change_is_not_certainty():
    interval = paired_proportions([0] * 16, [0] * 16).interval
    assert interval.value == 0 and interval.low < -0.05 and interval.high > 0.05


def test_paired_bootstrap_uses_the_pairing(fewer_resamples):
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 10, 60)
    base, tuned = difficulty + rng.normal(0, 0.1, 60), difficulty + 0.2 + rng.normal(0, 0.1, 60)
    paired = paired_bootstrap(base, tuned)
    assert paired.low > 0.1 and paired.high < 0.3
    alone = bootstrap_mean(tuned)
    assert alone.high - alone.low > 4


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(3).gamma(2, 1, 200)
    ours = bootstrap_mean(values, seed=1)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=5)
    low, high = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.02)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (2, 9), (12, 5), (30, 30)])
def test_mcnemar_is_statsmodels(lost, gained):
    base = [True] * lost + [False] * gained + [True] * 20 + [False] * 30
    tuned = [False] * lost + [True] * gained + [True] * 20 + [False] * 30
    expected = mcnemar([[20, lost], [gained, 30]], exact=True).pvalue if lost + gained else 1.0
    assert mcnemar_p(base, tuned) == pytest.approx(min(1.0, expected))


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5, 0.5], [0.2], [1.0, 0.0001, 0.049, 0.02, 0.2]])
def test_holm_is_statsmodels(p):
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_sign_flips_agree_with_the_exact_test():
    difference = np.array([0.3, -0.1, 0.25, 0.4, 0.05, -0.2, 0.35, 0.15, 0.22, -0.02])
    exact = scipy.stats.permutation_test(
        (difference,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert sign_flip_p(difference, flips=40_000) == pytest.approx(exact.pvalue, abs=0.008)


def test_sign_flips_reject_a_true_null_in_five_per_cent():
    p = [sign_flip_p(np.random.default_rng([1, i]).normal(0, 1, 30), seed=i, flips=400) for i in range(800)]
    assert 0.033 <= np.mean(np.array(p) < 0.05) <= 0.068


def test_sign_flips_over_clusters_keep_the_level():
    def p_values(with_clusters):
        for i in range(400):
            values, labels = clustered(np.random.default_rng([2, i]))
            yield sign_flip_p(values, labels if with_clusters else None, seed=i, flips=400)

    assert np.mean(np.array(list(p_values(True))) < 0.05) <= 0.075
    assert np.mean(np.array(list(p_values(False))) < 0.05) > 0.25


def test_detectable_effect_is_found_in_eighty_per_cent():
    """Against statsmodels' power of a paired t-test, and by simulation."""
    values = np.random.default_rng(0).normal(0, 1, 100)
    effect = detectable_effect(mean_standard_error(values))
    power = TTestPower().power(effect_size=effect / values.std(ddof=1), nobs=100, alpha=0.05)
    assert power == pytest.approx(0.8, abs=0.01)


def test_standard_error_over_clusters_is_that_of_their_means():
    values, labels = clustered(np.random.default_rng(4))
    means = values.reshape(20, 5).mean(1)
    assert mean_standard_error(values, labels) == pytest.approx(means.std(ddof=1) / 20**0.5)
    assert mean_standard_error([1.0]) == float("inf")
