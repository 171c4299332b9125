import json
import math

import pytest

from entrodrop_tune.analysis.run_groups import config_difference
from entrodrop_tune.analysis.runs import jsonable, load_run, load_runs, run_names
from entrodrop_tune.errors import UserError
from tests.analysis.synthetic import make_run


def test_reads_what_training_wrote(folders):
    run = load_run(folders / "ease")
    assert len(run.metrics) == 96 and len(run.validation) == 9
    assert run.validation["step"].iloc[0] == 0
    assert run.config["epochs"] == 8


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 97, "epo')
    assert load_run(run).metrics["step"].max() == 96


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    run = make_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[3] = "{oops"
    (run / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"metrics\.jsonl line 4"):
        load_run(run)


def test_steps_repeated_by_a_resume_count_once_and_the_later_line_wins(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 90, "epoch": 7.5, "nll_all": 123.0}) + "\n")
    metrics = load_run(run).metrics
    assert len(metrics) == 96
    assert metrics.loc[metrics["step"] == 90, "nll_all"].item() == 123.0


def test_a_run_that_has_not_started_stepping_is_readable(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    (run / "validation.jsonl").unlink()
    assert len(load_run(run).metrics) == 0


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_no_run_folder_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json"):
        load_run(tmp_path)


def test_missing_folder_and_twice_the_same_are_refused(tmp_path, folders):
    with pytest.raises(UserError, match="does not exist"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="given twice"):
        load_runs([folders / "ease", folders / "ramp" / ".." / "ease"])


def test_names_tell_runs_apart(tmp_path):
    runs = load_runs([make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")])
    assert run_names(runs) == ["a/run", "b/run"]


def test_config_difference_lists_only_what_differs(tmp_path):
    left = make_run(tmp_path / "left", config={"a": {"b": 1, "c": 2}, "output_dir": "x"})
    right = make_run(tmp_path / "right", config={"a": {"b": 1, "c": 3}, "d": [1], "output_dir": "y"})
    assert config_difference(load_runs([left, right])) == {"a.c": [2, 3], "d": [None, [1]]}


def test_jsonable_makes_strict_json():
    import numpy as np

    value = jsonable({"a": np.float32(0.5), "b": math.nan, "c": [math.inf, np.int64(3), True, None], 4: "x"})
    assert json.loads(json.dumps(value, allow_nan=False)) == {"a": 0.5, "b": None, "c": [None, 3, True, None], "4": "x"}
