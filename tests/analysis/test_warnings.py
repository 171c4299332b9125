import json
import math

import pytest

from entrodrop_tune.analysis.runs import load_run
from entrodrop_tune.analysis.warnings import find_problems
from tests.analysis.synthetic import make_run

# The synthetic mean entropy falls by exp(-0.8); a quantile falls with it.
HEALTHY = {"rise": 0.002, "best_epoch": 6.0, "noise": 0.0, "threshold": lambda p: 0.5 * math.exp(-0.8 * p)}


def codes(path):
    return {finding.code for finding in find_problems(load_run(path))}


def test_a_healthy_run_has_no_warning(tmp_path):
    assert codes(make_run(tmp_path / "run", **HEALTHY)) == set()


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"rise": 0.1, "best_epoch": 2.0}, "overfitting"),
        ({"low_rise": 0.05, "best_epoch": 2.0, "rise": 0.0}, "grammar_loss"),
        ({"drop_rate": lambda p: 1.6}, "kept_too_low"),
        ({"threshold": lambda p: 0.5}, "threshold_drift"),
        ({"stop_at": 0.5, "exit_state": "stopped_early"}, "curriculum_cut_short"),
        ({"stop_at": 0.5, "exit_state": "interrupted"}, "unfinished"),
    ],
)
def test_each_sign_is_found_alone(tmp_path, settings, code):
    found = codes(make_run(tmp_path / "run", **{**HEALTHY, **settings}))
    assert code in found
    assert found <= {code, "curriculum_cut_short"}


def test_a_threshold_moved_on_purpose_is_no_drift(tmp_path):
    schedule = {"shape": "linear", "start": 0.6, "end": 0.3}
    config = {"entrodrop": {"threshold": {"quantile": schedule}, "drop_rate": 0.5}}
    run = make_run(tmp_path / "run", **{**HEALTHY, "threshold": lambda p: 0.6 - 0.5 * p}, config=config)
    assert "threshold_drift" not in codes(run)


@pytest.mark.parametrize(("quantile", "missed"), [(0.5, False), (0.8, True)])
def test_a_threshold_that_misses_its_quantile_is_found(tmp_path, quantile, missed):
    # The synthetic run keeps 1 - rate / 2 of its tokens: half of them lie below the threshold.
    config = {"entrodrop": {"threshold": {"quantile": quantile}, "drop_rate": 0.5}}
    run = make_run(tmp_path / "run", drop_rate=lambda p: 0.5, config=config, **HEALTHY)
    assert ("quantile_missed" in codes(run)) == missed


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"nll_all": float("nan")}, "not_finite"),
        ({"kept_fraction": 0.0}, "nothing_kept"),
        ({"grad_norm": 60.0}, "gradient_spike"),
    ],
)
def test_one_bad_step_is_found(tmp_path, change, code):
    run = make_run(tmp_path / "run", **HEALTHY)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[40] |= change
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    finding = next(f for f in find_problems(load_run(run)) if f.code == code)
    assert "41" in finding.detail


def test_problems_come_first(tmp_path):
    run = make_run(tmp_path / "run", stop_at=0.5, exit_state="failed", rise=0.2)
    severities = [finding.severity for finding in find_problems(load_run(run))]
    assert severities == sorted(severities, key=lambda s: s != "problem") and "problem" in severities
