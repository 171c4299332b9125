"""What `compare`, `report` and `entropy` read back, in any state: shown, or refused in one line that names the file."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from entrodrop_tune.analysis import pages
from entrodrop_tune.analysis.before_after import GROUPS
from entrodrop_tune.analysis.compare_runs import METRICS
from entrodrop_tune.analysis.entropy_page import gradient_figures, training_figures
from entrodrop_tune.analysis.entropy_record import read_profile
from entrodrop_tune.analysis.report import build_report
from entrodrop_tune.analysis.runs import load_runs
from entrodrop_tune.cli.main import app
from entrodrop_tune.errors import UserError
from entrodrop_tune.evaluation import render
from entrodrop_tune.evaluation.comparison import compare_evaluations
from entrodrop_tune.evaluation.results import load_results
from tests.analysis.synthetic import make_evaluation, make_run
from tests.fuzz.mutations import as_json, bounded, damaged, mutated

SHARES = {"norm": [1.0, 2.0], "before": [0.3, 0.7], "after": [0.1, 0.9], "norm_ratio": 0.9}
RANGES = [
    {"low": 0.0, "high": 0.5, "keep_probability": 0.2, "token_share": 0.6, "nll_share": 0.1},
    {"low": 0.5, "high": None, "keep_probability": 1.0, "token_share": 0.4, "nll_share": 0.9},
]
GRADIENT = {"samples": 2, "tokens": 40, "threshold_nats": 0.5, "ranges": RANGES, "scopes": {"head": SHARES}}
POINT = {"epoch": 0.0, "token_share_below": 0.6, "nll_share_below": 0.1, "gradient_share_below": 0.3}
PROFILE = {
    "schema": 1,
    "model": {"path": "models/x", "base": "models/x", "hash": "beef"},
    "domains": [{"name": "math", "gradient": GRADIENT}],
    "over_training": [POINT, {**POINT, "epoch": 1.0}],
    "verdict": ["math: 60% of the tokens are easy."],
}
LINES = ("metrics.jsonl", "validation.jsonl", "items.jsonl")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A run and two evaluations, small, to be damaged one file at a time."""
    root = tmp_path_factory.mktemp("fuzz")
    make_run(root / "run", epochs=2)
    make_evaluation(root / "base", n=6)
    make_evaluation(root / "tuned", n=6, gain=0.3, seed=1)
    return root


def contents(name):
    """Strategy: the file ``name`` with values or bytes of it changed, from its original bytes."""

    def strategy(original: bytes):
        if name in LINES:
            rows = [json.loads(line) for line in original.splitlines()]
            changed = mutated(rows[:8]).map(lambda rows: b"".join(as_json(row) + b"\n" for row in rows))
        else:
            changed = mutated(json.loads(original)).map(as_json)
        return changed | damaged(original)

    return strategy


def with_file(folder, name, content: bytes):
    copy = folder.parent / f"damaged-{folder.name}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / name).write_bytes(content)
    return copy


def one_line(error: UserError, folder) -> None:
    assert "\n" not in str(error) and str(folder) in str(error), error


@pytest.mark.parametrize("name", ["eval.json", "items.jsonl"])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_any_evaluation(originals, name, side):
    good = load_results(originals / ("tuned" if side == "base" else "base"))

    @bounded(25)
    @given(content=contents(name)((originals / side / name).read_bytes()))
    def check(content):
        folder = with_file(originals / side, name, content)
        try:
            found = load_results(folder)
            pair = (found, good) if side == "base" else (good, found)
            comparison = compare_evaluations(*pair)
            json.dumps(comparison.to_dict(), allow_nan=False)
            render.comparison_markdown(comparison, every_metric=True)
            render.cost_table([comparison])
        except UserError as error:
            assert "\n" not in str(error)

    check()


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "validation.jsonl"])
def test_any_run(originals, name):
    @bounded(25)
    @given(content=contents(name)((originals / "run" / name).read_bytes()))
    def check(content):
        folder = with_file(originals / "run", name, content)
        try:
            report = build_report(load_runs([folder]))
        except UserError as error:
            one_line(error, folder)
            return
        json.dumps(report, allow_nan=False)
        pages.render("report.md.j2", report=report, groups=GROUPS, metrics=METRICS)

    check()


@bounded(40)
@given(content=mutated(PROFILE).map(as_json) | damaged(as_json(PROFILE)))
def test_any_entropy_profile(content, originals):
    folder = originals / "entropy"
    folder.mkdir(exist_ok=True)
    (folder / "entropy.json").write_bytes(content)
    try:
        profile = read_profile(folder)
    except UserError as error:
        one_line(error, folder)
        return
    # Drawing takes a tenth of a second a figure, so one figure of each kind will do.
    gradient_figures({**profile, "domains": profile["domains"][:1]})
    training_figures(profile)


def test_an_undamaged_profile_is_drawn(originals, tmp_path):
    (tmp_path / "entropy.json").write_bytes(as_json(PROFILE))
    profile = read_profile(tmp_path)
    assert len(gradient_figures(profile)) == len(training_figures(profile)) == 1


@pytest.mark.slow
@bounded(2)
@given(data=st.data())
def test_a_report_is_whole_or_absent(data, originals):
    name = data.draw(st.sampled_from(["run.json", "metrics.jsonl", "validation.jsonl"]))
    content = data.draw(contents(name)((originals / "run" / name).read_bytes()))
    folder, output = with_file(originals / "run", name, content), originals / "out"
    shutil.rmtree(output, ignore_errors=True)
    done = CliRunner().invoke(app, ["report", str(folder), "--output", str(output)])
    if done.exit_code == 0:
        assert len(list(output.iterdir())) == 4
    else:
        assert isinstance(done.exception, UserError), done.exception
        assert not output.exists()
