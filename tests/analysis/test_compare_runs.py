import json

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from entrodrop_tune.analysis.compare_output import mean_curve, write_comparison
from entrodrop_tune.analysis.compare_runs import compare_runs, mean, seeds_needed
from entrodrop_tune.analysis.run_groups import group_names
from entrodrop_tune.analysis.runs import load_runs
from entrodrop_tune.cli.compare import EXAMPLES
from entrodrop_tune.cli.main import app
from entrodrop_tune.errors import UserError
from tests.analysis.synthetic import make_run


def study(folder, gains=(0.0, 0.05), seeds=(0, 1, 2, 3), noise=0.004, **settings):
    """A run a gain and seed; each gain lowers the best NLL; the arms are named by ``entrodrop.select``."""
    paths = []
    for arm, gain in zip(("none", "entropy", "random"), gains, strict=False):
        for seed in seeds:
            config = {"seed": seed, "entrodrop": {"select": arm}, "epochs": 8, "output_dir": f"{arm}-{seed}"}
            path = folder / f"{arm}-{seed}"
            paths.append(
                make_run(path, seed=10 * seed + len(arm), best=0.9 - gain, noise=noise, config=config, **settings)
            )
    return load_runs(paths)


def test_groups_are_runs_that_differ_in_their_seed_alone(tmp_path):
    assert group_names(study(tmp_path)) == ["select=none"] * 4 + ["select=entropy"] * 4


def test_single_runs_keep_their_folder_names(tmp_path):
    assert group_names(study(tmp_path, seeds=(0,))) == ["none-0", "entropy-0"]


def test_paired_test_agrees_with_scipy(tmp_path):
    runs = study(tmp_path)
    comparison = compare_runs(runs)
    difference = comparison.differences[0]
    best = [run.validation["nll"].min() for run in runs]
    expected = stats.ttest_rel(best[4:], best[:4])
    low, high = expected.confidence_interval()
    assert difference.test == "paired t" and difference.outcome == "better"
    assert difference.value == pytest.approx(np.mean(best[4:]) - np.mean(best[:4]))
    assert (difference.low, difference.high) == (pytest.approx(low), pytest.approx(high))
    assert difference.p == pytest.approx(expected.pvalue)
    assert comparison.verdicts[0].startswith("select=entropy is better than select=none by 0.0")


def test_the_example_in_help_runs(tmp_path, monkeypatch):
    (example,) = [line.split()[1:] for line in EXAMPLES.splitlines() if "--baseline" in line]
    for path in (tmp_path / word for word in example if word.startswith("runs/")):
        arm, seed = path.name.split("-")
        config = {"entrodrop": {"select": {"plain": "none", "entrodrop": "entropy"}[arm]}, "seed": int(seed)}
        make_run(path, epochs=2, seed=int(seed), config=config)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*example, "--json"], catch_exceptions=False)
    assert {row["baseline"] for row in json.loads(result.stdout)["differences"]} == {"select=none"}


def test_other_seeds_give_welch(tmp_path):
    runs = [*study(tmp_path / "a", gains=(0.0,)), *study(tmp_path / "b", gains=(0.0, 0.05), seeds=(7, 8, 9))]
    difference = next(d for d in compare_runs(runs).differences if d.group == "select=entropy")
    assert difference.test == "Welch t" and difference.n == (3, 7)


def test_p_values_are_adjusted_for_the_number_of_groups(tmp_path):
    runs = study(tmp_path, gains=(0.0, 0.004, 0.004), noise=0.01)
    adjusted = [d.p for d in compare_runs(runs).differences if d.metric == "best_nll"]
    best = np.array([run.validation["nll"].min() for run in runs]).reshape(3, 4)
    raw = sorted(stats.ttest_rel(best[i], best[0]).pvalue for i in (1, 2))
    assert sorted(adjusted) == pytest.approx([min(1, 2 * raw[0]), min(1, max(2 * raw[0], raw[1]))])


def test_what_cannot_be_shown_says_how_many_seeds_it_would_take(tmp_path):
    comparison = compare_runs(study(tmp_path, gains=(0.0, 0.002), seeds=(0, 1, 2), noise=0.02))
    assert comparison.differences[0].outcome == "not shown"
    assert "can be shown with 3 seeds" in comparison.verdicts[0] and "would be needed" in comparison.verdicts[0]


def test_one_seed_claims_nothing(tmp_path):
    comparison = compare_runs(study(tmp_path, seeds=(0,)))
    assert comparison.differences[0].outcome == "one seed"
    assert "better" not in comparison.verdicts[0] and "3 seeds" in comparison.verdicts[0]


def test_seeds_needed_reaches_the_power_it_promises():
    needed = seeds_needed(1.0, paired=True)
    rng = np.random.default_rng(0)

    def power(n):
        samples = rng.normal(1.0, 1.0, (4000, n))
        return (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean()

    assert power(needed) > 0.79 > power(needed - 1) - 0.02
    assert seeds_needed(0.01, paired=True) is None


def test_mean_interval_is_students(tmp_path):
    import pandas as pd

    values = [0.9, 0.95, 1.0]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    got = mean(pd.Series([*values, np.nan]))
    assert got.n == 3 and got.half_width == pytest.approx((high - low) / 2)
    assert mean(pd.Series([0.9])).half_width is None


def test_a_baseline_may_be_a_group_or_a_run(tmp_path):
    runs = study(tmp_path)
    for name in ("select=entropy", "entropy-2"):
        difference = compare_runs(runs, baseline=name).differences[0]
        assert (difference.baseline, difference.group, difference.outcome) == ("select=entropy", "select=none", "worse")
    with pytest.raises(UserError, match=r'no group or run "entropi-2".* Did you mean "entropy-2"'):
        compare_runs(runs, baseline="entropi-2")


def test_mistakes_are_refused(tmp_path):
    runs = study(tmp_path, seeds=(0,))
    with pytest.raises(UserError, match="at least two"):
        compare_runs(runs[:1])
    with pytest.raises(UserError, match="best_nll"):
        compare_runs(runs, metric="best_nl")


def test_the_mean_curve_ends_with_the_shortest_run(tmp_path):
    runs = load_runs([make_run(tmp_path / "long"), make_run(tmp_path / "short", stop_at=0.5)])
    assert mean_curve(runs).index.max() == 4.0


def test_seeds_alone_give_a_mean_and_no_test(tmp_path):
    comparison = compare_runs(study(tmp_path, gains=(0.0,)))
    assert comparison.differences == [] and "over 4 seeds" in comparison.verdicts[0]


def test_files_agree(tmp_path):
    runs = study(tmp_path / "runs", gains=(0.0, 0.05, 0.01))
    comparison = compare_runs(runs)
    write_comparison(comparison, runs, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert len(content["runs"]) == 12 and content["verdicts"][0] in text
    mean_best = content["groups"][1]["means"]["best_nll"]
    assert f"{mean_best['value']:.3f} ± {mean_best['half_width']:.3f}" in text
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
