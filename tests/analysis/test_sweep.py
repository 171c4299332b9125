import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from entrodrop_tune.analysis.runs import load_runs
from entrodrop_tune.analysis.sweep_plan import Plan, Size, parse_grid, parse_overrides, read_plan, trials
from entrodrop_tune.analysis.sweep_report import build_sweep_report, main_effects, write_sweep_report
from entrodrop_tune.analysis.sweep_run import Result, _evaluated, check_trials
from entrodrop_tune.cli.catalog import configs
from entrodrop_tune.cli.main import app
from entrodrop_tune.config import load_mapping
from entrodrop_tune.errors import UserError
from entrodrop_tune.evaluation.results import EvalResults, save_results
from tests.analysis.synthetic import make_run

PLAN = Plan(
    title="a question",
    config="tiny",
    arms={"plain": {"entrodrop.select": "none"}, "ease": {"entrodrop.preset": "ease"}},
    grid={"optimizer.lr": (0.001, 0.003)},
    seeds=(0, 1),
)


def test_trials_are_all_combinations_and_every_arm_has_a_seed_before_any_has_two():
    found = trials(PLAN)
    assert len(found) == 8 and len({trial.name for trial in found}) == 8
    assert [trial.seed for trial in found] == [0] * 4 + [1] * 4
    assert found[0].group == "plain, lr=0.001" and found[0].name == "plain_lr=0.001-seed0"
    assert found[0].overrides == ("entrodrop.select=none", "optimizer.lr=0.001", "seed=0")


def test_an_arm_may_choose_its_recipe_and_remove_a_section():
    plan = PLAN.model_copy(update={"arms": {"full": {"recipe": "full_finetune", "~adapter": None}}, "grid": {}})
    trial = trials(plan)[0]
    assert trial.recipe == "full_finetune" and "~adapter" in trial.overrides


@pytest.mark.parametrize(
    "value", [0.5, 1e-4, True, None, "random", [1, 2], {"quantile": 0.5}, {"shape": "linear", "start": 0.8, "end": 0}]
)
def test_what_a_plan_says_is_what_the_config_becomes(tmp_path, value):
    (tmp_path / "base.yaml").write_text("key: old\n")
    plan = PLAN.model_copy(update={"arms": {"one": {"key": value}}, "grid": {}, "seeds": (3,)})
    mapping = load_mapping(tmp_path / "base.yaml", list(trials(plan)[0].overrides))
    assert mapping == {"key": value, "seed": 3}


def test_grid_text():
    assert parse_grid(["a.b=1,2.5", "c=x,y", "lr=1e-4,1e-3", "d=[[1,2],[3]]", "e=true"]) == {
        "a.b": (1, 2.5), "c": ("x", "y"), "lr": (1e-4, 1e-3), "d": ([1, 2], [3]), "e": (True,),
    }  # fmt: skip


def test_overrides_text():
    assert parse_overrides(["a.b=1", "~adapter", "c={x: [1, 2]}", "a.b=2", "d=", "e=1e-4"]) == {
        "a.b": 2, "~adapter": None, "c": {"x": [1, 2]}, "d": None, "e": 1e-4,
    }  # fmt: skip
    for item in ("epochs", "=3", "a={"):
        with pytest.raises(UserError, match="cannot read"):
            parse_overrides([item])


@pytest.mark.parametrize("item", ["a", "=1", "a="])
def test_bad_grid_text_is_refused(item):
    with pytest.raises(UserError, match="write key=value"):
        parse_grid([item])


def test_sizes_override_and_mistakes_are_named(tmp_path):
    (tmp_path / "plan.yaml").write_text(
        "title: t\nconfig: c.yaml\narms: {a: {x: 1}, b: {x: 2}}\nseeds: [0, 1]\noverrides: {epochs: 8, y: 1}\n"
        "sizes: {small: {seeds: [7], overrides: {epochs: 2}, arms: [b]}, wrong: {arms: [c]}}\n"
    )
    (tmp_path / "c.yaml").write_text("x: 0\n")
    plan = read_plan(tmp_path / "plan.yaml")
    small = plan.sized("small")
    assert plan.config == str(tmp_path / "c.yaml")
    assert (small.seeds, small.overrides, list(small.arms)) == ((7,), {"epochs": 2, "y": 1}, ["b"])
    with pytest.raises(UserError, match=r'no size "smal".* Did you mean "small"'):
        plan.sized("smal")
    with pytest.raises(UserError, match='names the arm "c"'):
        plan.sized("wrong")


def test_a_misspelt_plan_key_is_refused(tmp_path):
    (tmp_path / "plan.yaml").write_text("title: t\nconfig: c\nseed: [0]\n")
    with pytest.raises(UserError, match=r'unknown key "seed".* Did you mean "seeds"'):
        read_plan(tmp_path / "plan.yaml")


def test_a_plan_runs_once_for_each_domain():
    domains = {"a": {"data.train": "a.jsonl"}, "b": {"data.train": "b.jsonl"}}
    plan = PLAN.model_copy(update={"domains": domains, "overrides": {"epochs": 2}})
    assert PLAN.by_domain() == {None: PLAN}
    assert list(plan.by_domain()) == ["a", "b"] and list(plan.by_domain(["b"])) == ["b"]
    assert plan.by_domain()["b"].overrides == {"data.train": "b.jsonl", "epochs": 2}
    with pytest.raises(UserError, match='no domain "c"'):
        plan.by_domain(["c"])


def test_a_limited_size_takes_fewer_rows():
    domains = {"a": {"data.train": "a.jsonl", "data.validation": "v.jsonl"}}
    plan = PLAN.model_copy(update={"domains": domains, "sizes": {"small": Size(limit=9)}})
    assert plan.sized("small").by_domain()["a"].overrides == {
        "data.train": {"path": "a.jsonl", "limit": 9}, "data.validation": {"path": "v.jsonl", "limit": 4},
    }  # fmt: skip


def test_a_limit_is_added_to_what_a_source_says_and_refused_without_domains():
    domains = {"a": {"data.train": {"path": "a.jsonl", "limit": 100}, "data.validation": "v.jsonl"}}
    plan = PLAN.model_copy(update={"domains": domains, "sizes": {"small": Size(limit=9), "large": Size(limit=500)}})
    assert plan.sized("small").domains["a"]["data.train"] == {"path": "a.jsonl", "limit": 9}
    assert plan.sized("large").domains["a"]["data.train"] == {"path": "a.jsonl", "limit": 100}
    with pytest.raises(UserError, match='"small" has a limit'):
        PLAN.model_copy(update={"sizes": {"small": Size(limit=9)}}).sized("small")


@pytest.mark.parametrize("key", ["seed", "output_dir", "resume"])
@pytest.mark.parametrize("where", ["overrides", "grid", "arms"])
def test_keys_that_the_sweep_sets_are_refused(key, where):
    value = {"overrides": {key: 1}, "grid": {key: (1, 2)}, "arms": {"plain": {key: 1}}}[where]
    with pytest.raises(UserError, match=f'a sweep sets "{key}" itself'):
        trials(PLAN.model_copy(update={where: value}))


def test_a_baseline_must_be_a_group_of_the_plan():
    assert trials(PLAN.model_copy(update={"baseline": "ease, lr=0.003"}))
    with pytest.raises(UserError, match=r'baseline "plian".* Did you mean "plain"'):
        trials(PLAN.model_copy(update={"baseline": "plian", "grid": {}}))
    with pytest.raises(UserError, match='baseline "ease"'):  # with a grid, an arm is several groups
        trials(PLAN.model_copy(update={"baseline": "ease"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "best_nl"}, 'metric "best_nl".* Did you mean "best_nll"'),
        ({"evaluate": "quik"}, 'suite "quik".* Did you mean "quick"'),
        ({"recipe": "lora_finetun"}, 'recipe "lora_finetun".* Did you mean "lora_finetune"'),
    ],
)
def test_a_mistake_in_the_plan_is_refused_before_the_first_run(tmp_path, change, words):
    plan = PLAN.model_copy(update=change)
    with pytest.raises(UserError, match=words):
        check_trials(plan, trials(plan), tmp_path, configs()["tiny"])


def record_evaluations(monkeypatch, calls):
    """Instead of `entrodrop eval`: note which model is scored on which suite, and write an evaluation of no items."""

    def call(command, **_):
        model, suite, target = command[4], command[6], Path(command[8])
        calls.append((model, suite))
        save_results(evaluation(suite), target)
        return 0

    monkeypatch.setattr("entrodrop_tune.analysis.sweep_run.subprocess.call", call)


def evaluation(suite):
    return EvalResults(
        model={"path": "m", "base": "m", "adapter": None, "hash": "0", "parameters": 1},
        suite=suite,
        settings={},
        versions={},
        machine={},
        started="",
        seconds=0.0,
        tasks={},
    )


def test_each_model_and_suite_has_its_own_evaluation(tmp_path, monkeypatch):
    plan = Plan(title="t", config="tiny", grid={"model.path": ("models/a", "models/b")})
    calls = []
    record_evaluations(monkeypatch, calls)
    for trial in trials(plan):
        make_run(tmp_path / "runs" / trial.name, seed=0, config={"seed": 0, "model": {"path": trial.overrides[0][11:]}})
    (tmp_path / "logs").mkdir()
    for suite in ("quick", "quick", "general"):
        for trial in trials(plan):
            _evaluated(Result(trial, "done", f"runs/{trial.name}"), suite, tmp_path)
    base = [call for call in calls if call[0].startswith("models/")]
    assert base == [(f"models/{name}", suite) for suite in ("quick", "general") for name in "ab"]
    assert len(calls) == 8  # and each run's best checkpoint as often; the second "quick" found everything done


STUDIES = sorted(path for path in (Path(__file__).parents[2] / "studies").glob("*.yaml") if path.name != "base.yaml")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_valid_at_every_size(path):
    from entrodrop_tune.training.launch import load_config

    plan = read_plan(path)
    assert {"minutes", "hours", "full"} <= set(plan.sizes)
    for size in (None, *plan.sizes):
        for part in plan.sized(size).by_domain().values():
            found = trials(part)
            assert part.baseline is None or part.baseline in {trial.group for trial in found}
            for trial in found[: len(found) // len(part.seeds)]:
                config = load_config(part.config, ["output_dir=unused", *trial.overrides])
                # The recipe and the adapter section must agree, or the run is refused when it starts.
                assert (config.adapter is None) == (trial.recipe == "full_finetune")


def finished(folder, plan, best):
    """Results and runs as if the sweep had run; ``best(trial)`` is a trial's best validation NLL."""
    results = []
    for trial in trials(plan):
        config = {"seed": trial.seed, "model": {"path": "models/a"}, **trial.settings}
        make_run(folder / "runs" / trial.name, seed=trial.seed, best=best(trial), noise=0.0, config=config)
        results.append(Result(trial, "done", f"runs/{trial.name}", 1.0))
    return results


def test_main_effects_are_the_marginal_means_and_leave_out_what_other_factors_explain(tmp_path):
    def best(trial):
        slow = trial.settings["optimizer.lr"] == 0.001
        return 0.8 + 0.05 * (trial.arm == "ease") + 0.2 * slow + 0.01 * trial.seed

    results = finished(tmp_path, PLAN, best)
    runs = load_runs([tmp_path / "runs" / result.trial.name for result in results])
    arm, lr = main_effects(PLAN, runs, [result.trial for result in results])
    nll = np.array([run.validation["nll"].min() for run in runs])
    arms = np.array([result.trial.arm for result in results])
    assert (arm["factor"], lr["factor"]) == ("arm", "optimizer.lr")
    for level in arm["levels"]:
        assert level["value"] == pytest.approx(nll[arms == level["level"]].mean())
        # All is explained by arm, learning rate and seed, up to what the curve's shape adds.
        assert level["half_width"] < 0.01


def test_failures_are_kept_apart(tmp_path):
    results = finished(tmp_path, PLAN, lambda trial: 0.9)
    results[-1] = Result(results[-1].trial, "failed", None, 2.0, "exit code 1: out of memory")
    report, runs = build_sweep_report(PLAN, results, tmp_path)
    groups = [result.trial.group for result in results if result.state == "done"]
    write_sweep_report(report, PLAN, runs, tmp_path, groups)
    assert len(runs) == 7 and report["failed"][0]["error"] == "exit code 1: out of memory"
    text = (tmp_path / "sweep.md").read_text()
    assert "7 of 8 runs done, 1 failed" in text and "out of memory" in text
    assert json.loads((tmp_path / "sweep.json").read_text()) == report
    assert (tmp_path / "main_effects.png").exists() and (tmp_path / "sweep.png").exists()


def test_a_mistake_in_any_trial_is_refused_before_the_first_starts(tmp_path):
    arguments = [
        "sweep",
        "--config",
        "tiny",
        "--grid",
        "entrodrop.select=none,entropi",
        "--output",
        str(tmp_path / "out"),
    ]
    with pytest.raises(UserError, match="entropi"):
        CliRunner().invoke(app, [*arguments, *paths("m", "d")], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def paths(model, data):
    return [f"model.path={model}", f"data.train={data}/train.jsonl", f"data.validation={data}/validation.jsonl"]


def sweep(*arguments):
    return [sys.executable, "-m", "entrodrop_tune.cli.main", "sweep", *map(str, arguments)]


@pytest.mark.slow
def test_runs_by_tune_run_resume_and_failures(tiny_model, tiny_data, tmp_path):
    common = ["sweep", "--config", "tiny", "--recipe", "full_finetune", "--output", str(tmp_path), "--json", "epochs=1"]
    common += paths(tiny_model, tiny_data)
    # A negative learning rate passes the config's types and fails in the optimizer.
    first = CliRunner().invoke(app, [*common, "--grid", "optimizer.lr=1e-3,-1"], catch_exceptions=False)
    report = json.loads(first.stdout)
    assert first.exit_code == 1 and [item["name"] for item in report["failed"]] == ["lr=-1-seed0"]
    assert "learning rate" in report["failed"][0]["error"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["lr=0.001-seed0"]
    before = (tmp_path / "runs" / "lr=0.001-seed0" / "run.json").read_bytes()
    second = CliRunner().invoke(app, [*common, "--grid", "optimizer.lr=1e-3,1e-2"], catch_exceptions=False)
    assert (tmp_path / "runs" / "lr=0.001-seed0" / "run.json").read_bytes() == before  # not run again
    assert second.exit_code == 0
    with pytest.raises(UserError, match='"epochs" was 1, would be 2'):
        CliRunner().invoke(app, [*common, "epochs=2", "--grid", "optimizer.lr=1e-3,1e-2"], catch_exceptions=False)
    assert [trial["state"] for trial in json.loads(second.stdout)["trials"]] == ["done", "done"]


@pytest.mark.slow
def test_an_interrupt_saves_the_run_in_progress_and_the_next_call_goes_on(tiny_model, tiny_data, tmp_path):
    common = ["--config", "tiny", "--recipe", "full_finetune", "--output", tmp_path, *paths(tiny_model, tiny_data)]
    process = subprocess.Popen(sweep(*common, "epochs=5000"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "runs" / "all-seed0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 1
    assert json.loads((tmp_path / "runs" / "all-seed0" / "run.json").read_text())["exit"] == "interrupted"
    assert json.loads((tmp_path / "sweep.json").read_text())["unfinished"] == ["all-seed0"]

    def steps():
        return [json.loads(line)["step"] for line in metrics.read_text().splitlines()]

    done, first_line = steps()[-1], metrics.read_text().splitlines()[0]
    subprocess.run(sweep(*common, "epochs=5000", f"max_steps={done + 2}"), check=True, capture_output=True)
    assert steps() == list(range(1, done + 3))
    assert metrics.read_text().splitlines()[0] == first_line  # gone on with, not begun again
