import numpy as np
import pandas as pd
import pytest

from entrodrop_tune.analysis.runs import load_run
from entrodrop_tune.analysis.summary import effective_length, epoch_means, summarize, verdict
from tests.analysis.synthetic import make_run


def curve(nll):
    return pd.DataFrame({"epoch": np.arange(len(nll), dtype=float), "nll": nll})


def test_effective_length_is_where_validation_crosses_one_percent_above_its_best():
    # Best 1.0 at epoch 2; the limit 1.01 lies a quarter of the way from 1.0 to 1.04.
    assert effective_length(curve([2.0, 1.5, 1.0, 1.04, 1.2])) == (pytest.approx(2.25), False)


def test_effective_length_ends_where_validation_leaves_its_best_for_good():
    # 1.02 is above the limit of 1.01, but 1.005 comes back under it, 0.005 of the 0.195 to 1.2 below it.
    assert effective_length(curve([2.0, 1.0, 1.02, 1.005, 1.2])) == (pytest.approx(3 + 0.005 / 0.195), False)


def test_effective_length_ignores_what_came_before_the_best():
    assert effective_length(curve([3.0, 1.0, 1.2, 0.9, 0.9])) == (4.0, True)


def test_effective_length_where_the_best_is_zero():
    assert effective_length(curve([1.0, 0.0, 0.5])) == (1.0, False)


def test_effective_length_of_no_validation():
    assert effective_length(curve([])) == (None, False)


def test_summary_matches_the_rows(folders):
    run = load_run(folders / "ease")
    summary = summarize(run)
    nll = run.validation["nll"].to_numpy()
    assert summary.best_nll == nll.min() and summary.final_nll == nll[-1] and summary.start_nll == nll[0]
    assert summary.best_epoch == nll.argmin()
    assert summary.degradation == pytest.approx(nll[-1] - nll.min())
    weights = run.metrics["tokens"]
    assert summary.kept_fraction == pytest.approx(np.average(run.metrics["kept_fraction"], weights=weights))


def test_epoch_means_put_the_last_step_of_an_epoch_into_that_epoch(folders):
    means = epoch_means(load_run(folders / "ease").metrics)
    assert list(means.index) == list(range(1, 9))
    rows = load_run(folders / "ease").metrics.iloc[12:24]
    assert means.loc[2, "nll_all"] == pytest.approx(np.average(rows["nll_all"], weights=rows["tokens"]))


def test_an_empty_run_has_a_summary(tmp_path):
    run = make_run(tmp_path / "run")
    for name in ("metrics.jsonl", "validation.jsonl"):
        (run / name).write_text("")
    summary = summarize(load_run(run))
    assert summary.best_nll is None and summary.steps == 0
    assert "no validation" in verdict("run", summary)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rise": 0.1}, "use the best checkpoint"),
        ({"rise": 0.0005, "noise": 0}, "within 1% of its best"),
        ({"best_epoch": 8, "noise": 0}, "still falling"),
        ({"best": 1.6, "noise": 0}, "never improved"),
    ],
)
def test_the_verdict_says_what_the_curve_did(tmp_path, settings, expected):
    assert expected in verdict("run", summarize(load_run(make_run(tmp_path / "run", **settings))))
