"""What a comparison says about evaluations whose truth is known."""

import json

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from entrodrop_tune.errors import UserError
from entrodrop_tune.evaluation.comparison import compare_evaluations
from entrodrop_tune.evaluation.render import comparison_html, comparison_markdown, pareto_front, tradeoff_figure
from entrodrop_tune.evaluation.retention import retention_index
from tests.evaluation.builders import evaluation


def scores(right, n):
    return [1.0] * right + [0.0] * (n - right)


def pair(n=200):
    """Math gains 30 points, general is unchanged but for one item, code loses likelihood."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 400, n).tolist()
    bits = rng.gamma(4, 0.2, n)
    likelihood = {"group": "code", "metric": "bits_per_byte", "higher": False, "weights": sizes}
    base = {
        "math": {"scores": scores(20, n), "group": "math", "chance": 0.0},
        "general": {"scores": scores(100, n), "chance": 0.25},
        "code": {"scores": bits.tolist(), **likelihood},
    }
    tuned = {
        "math": {**base["math"], "scores": scores(80, n)},
        "general": {**base["general"], "scores": scores(99, n)},
        "code": {**base["code"], "scores": (bits + 0.1 + rng.normal(0, 0.05, n)).tolist()},
    }
    return evaluation("base", base), evaluation("tuned", tuned)


def row(comparison, task):
    (found,) = [row for row in comparison.rows if row.task == task]
    return found


def test_gain_loss_and_no_change_are_told_apart():
    comparison = compare_evaluations(*pair())
    assert row(comparison, "math").verdict == "better"
    assert row(comparison, "code").verdict == "worse"
    assert row(comparison, "general").verdict == "no difference shown"


def test_deltas_are_differences_of_the_summaries():
    base, tuned = pair()
    comparison = compare_evaluations(base, tuned)
    for task, metric in (("math", "acc"), ("code", "bits_per_byte")):
        found = row(comparison, task)
        before, after = base.tasks[task].metrics[metric].value, tuned.tasks[task].metrics[metric].value
        assert (found.base, found.tuned) == pytest.approx((before, after))
        assert found.delta == pytest.approx(after - before)
        assert found.ci_low < found.delta < found.ci_high


@pytest.mark.parametrize("clustered", [False, True])
def test_the_detectable_change_of_a_ratio_is_that_of_its_jackknife(clustered):
    """Items of unlike size that all change by nearly the same: the ratio is sure, though its terms are not alike."""
    rng = np.random.default_rng(2)
    n = 120
    sizes, before = rng.integers(20, 800, n).astype(float), rng.gamma(4, 0.2, n)
    change = -0.3 + rng.normal(0, 0.02, n) + np.repeat(rng.normal(0, 0.02, n // 4), 4)
    spec = {"metric": "bits_per_byte", "higher": False, "weights": sizes.tolist()}
    units = np.arange(n) // 4 if clustered else np.arange(n)
    if clustered:
        spec["clusters"] = units.astype(str).tolist()
    base, tuned = (
        evaluation(name, {"t": {**spec, "scores": scores.tolist()}})
        for name, scores in (("base", before), ("tuned", before + change))
    )
    without = [np.average(change[units != unit], weights=sizes[units != unit]) for unit in np.unique(units)]
    error = np.sqrt((len(without) - 1) * np.var(without))
    expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * error
    assert row(compare_evaluations(base, tuned), "t").detectable == pytest.approx(expected, rel=0.03)


def test_holm_counts_the_primary_metrics():
    rows = compare_evaluations(*pair()).primary_rows()
    expected = multipletests([found.p for found in rows], method="holm")[1]
    assert [found.p_holm for found in rows] == pytest.approx(expected)
    assert len(rows) == 3


def test_groups_turn_every_metric_so_that_positive_is_better():
    groups = {(g.group, g.kind): g for g in compare_evaluations(*pair()).groups}
    assert groups["math", "accuracy"].delta == pytest.approx(30.0)
    assert groups["general", "accuracy"].delta == pytest.approx(-0.5)
    code = groups["code", "likelihood"]
    assert code.ci_high < 0 and code.ci_low < code.delta < code.ci_high


def test_tasks_over_the_same_rows_do_not_narrow_the_group():
    """Two prompts over the same questions say little more than one; two sets of questions do."""
    base, tuned = {"scores": scores(40, 100)}, {"scores": scores(60, 100)}

    def width(rows):
        pair = [
            evaluation(name, {task: {**spec, "rows": row} for task, row in zip("xy", rows, strict=True)})
            for name, spec in (("a", base), ("b", tuned))
        ]
        (group,) = compare_evaluations(*pair).groups
        assert group.delta == pytest.approx(20.0)
        return group.ci_high - group.ci_low

    same, apart = width(["q", "q"]), width(["q", "r"])
    assert same == pytest.approx(apart * 2**0.5)


def test_items_are_paired_by_content_not_by_position():
    base, tuned = pair()
    tuned.items.reverse()
    assert row(compare_evaluations(base, tuned), "math").delta == pytest.approx(0.3)


def test_only_items_in_both_are_compared():
    base, tuned = pair()
    tuned.items = [item for item in tuned.items if item.doc_id < 50]
    found = row(compare_evaluations(base, tuned), "math")
    assert found.n == 50 and found.base == pytest.approx(0.4)


def test_items_of_one_source_widen_the_interval_of_a_ratio_metric():
    """Four equal items a source are one item: the interval is that of the sources alone."""
    sources = np.random.default_rng(0).gamma(4, 0.2, 24)
    spec = {"metric": "bits_per_byte", "higher": False}
    items = np.repeat(sources, 4).tolist()
    of_items = {**spec, "scores": items, "weights": [50.0] * 96, "clusters": [f"{i // 4:02d}" for i in range(96)]}
    of_sources = {**spec, "scores": sources.tolist(), "weights": [200.0] * 24}
    found, expected = (
        evaluation(tasks={"t": one}).tasks["t"].metrics["bits_per_byte"] for one in (of_items, of_sources)
    )
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.ci_low, expected.ci_high))


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(1)
    labels = [str(i // 10) for i in range(200)]
    shift = np.repeat(rng.normal(0, 1, 20), 10)
    spec = {"scores": [0.0] * 200, "metric": "choice_margin", "clusters": labels}
    clustered = compare_evaluations(
        evaluation("a", {"t": spec}), evaluation("b", {"t": {**spec, "scores": shift.tolist()}})
    )
    plain = {"scores": [0.0] * 200, "metric": "choice_margin"}
    independent = compare_evaluations(
        evaluation("a", {"t": plain}), evaluation("b", {"t": {**plain, "scores": shift.tolist()}})
    )
    wide, narrow = clustered.rows[0], independent.rows[0]
    assert wide.ci_high - wide.ci_low > 2 * (narrow.ci_high - narrow.ci_low)
    assert wide.p > narrow.p


def test_unlike_settings_and_versions_are_reported():
    base, tuned = pair()
    tuned.settings["dtype"] = "bf16"
    tuned.versions["lm_eval"] = "0.5"
    tuned.tasks["math"].chat_template = True
    warnings = " ".join(compare_evaluations(base, tuned).warnings)
    assert "dtype differs" in warnings and "lm_eval differs" in warnings and "math: chat_template differs" in warnings
    assert compare_evaluations(base, base).warnings == ()


def test_nothing_in_common_is_refused():
    with pytest.raises(UserError, match="different tasks"):
        compare_evaluations(evaluation("a", {"x": {"scores": [1.0]}}), evaluation("b", {"y": {"scores": [1.0]}}))


def test_retention_index_is_the_share_above_chance():
    n = 400
    base = evaluation(
        "a", {"x": {"scores": scores(200, n), "chance": 0.25}, "y": {"scores": scores(300, n), "chance": 0.5}}
    )
    tuned = evaluation(
        "b", {"x": {"scores": scores(160, n), "chance": 0.25}, "y": {"scores": scores(280, n), "chance": 0.5}}
    )
    found = retention_index(base, tuned)
    assert found.index.value == pytest.approx((0.15 + 0.2) / (0.25 + 0.25))
    assert found.index.low < found.index.value < found.index.high < 1
    assert retention_index(base, base).index.value == pytest.approx(1.0)


def test_retention_interval_covers():
    hits = 0
    for i in range(150):
        rng = np.random.default_rng([5, i])
        before = rng.random(300) < 0.7
        after = np.where(before, rng.random(300) < 0.9, rng.random(300) < 0.1)
        spec = {"scores": before.astype(float).tolist(), "chance": 0.25}
        found = retention_index(
            evaluation("a", {"t": spec}),
            evaluation("b", {"t": {**spec, "scores": after.astype(float).tolist()}}),
            seed=i,
        )
        truth = (0.7 * 0.9 + 0.3 * 0.1 - 0.25) / (0.7 - 0.25)
        hits += found.index.low <= truth <= found.index.high
    assert 0.92 <= hits / 150 <= 0.98


def test_retention_is_undefined_for_a_base_at_chance():
    base = evaluation("a", {"x": {"scores": scores(25, 100), "chance": 0.25}})
    assert retention_index(base, base).index is None
    assert retention_index(evaluation("a", {"x": {"scores": [1.0], "group": "math"}}), base) is None


def test_outputs_hold_every_task():
    comparison = compare_evaluations(*pair())
    data = json.loads(json.dumps(comparison.to_dict()))
    assert {row["task"] for row in data["rows"]} == {"math", "general", "code"}
    assert data["retention"]["index"]["value"] == pytest.approx((99 / 200 - 0.25) / 0.25)
    markdown = comparison_markdown(comparison)
    page = comparison_html([comparison])
    for text in (markdown, page):
        assert "bits_per_byte" in text and "Retention index" in text and "better" in text
    assert "http" not in page.replace("http-equiv", "")


def test_names_cannot_inject_markup():
    comparison = compare_evaluations(
        evaluation("<script>x</script>", {"t": {"scores": [1.0, 0.0]}}),
        evaluation("b|c", {"t": {"scores": [1.0, 0.0]}}),
    )
    assert "<script>" not in comparison_html([comparison])


def test_pareto_front():
    points = [(0.0, 0.0), (1.0, -1.0), (-1.0, 2.0), (-2.0, 1.0), (1.0, -2.0)]
    assert [points[i] for i in pareto_front(points)] == [(-1.0, 2.0), (0.0, 0.0), (1.0, -1.0)]


def test_tradeoff_figure_has_a_panel_a_kind():
    comparison = compare_evaluations(*pair())
    assert len(tradeoff_figure([comparison]).axes) == 1  # math and general share accuracies only
    assert tradeoff_figure([comparison], domain="code").axes == []
