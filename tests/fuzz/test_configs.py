"""Configs and sweep plans in any state are accepted or refused by name; a mistake is never a traceback."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from entrodrop_tune.analysis.sweep_plan import parse_grid, parse_overrides, read_plan, trials
from entrodrop_tune.errors import UserError
from entrodrop_tune.training.config import RunConfig
from entrodrop_tune.training.launch import load_config
from tests.fuzz.mutations import bounded, damaged, json_values, mutated

ROOT = Path(__file__).parent.parent.parent
# Every section and many kinds of value at once.
FULL = {
    "output_dir": "runs/x",
    "seed": 1,
    "model": {"path": "models/x", "attention_dropout": 0.1},
    "adapter": {"type": "lora", "rank": 8, "alpha": 16.0, "target_modules": ["q_proj", "v_proj"]},
    "data": {
        "train": [{"path": "a.jsonl", "weight": 0.5, "columns": {"prompt": "question"}}, "b.jsonl"],
        "validation": "v.jsonl",
        "template": {"prompt": "Q: {prompt}"},
        "replay": {"path": "r.jsonl", "ratio": 0.2},
    },
    "epochs": 3,
    "batch_size": 2,
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4, "betas": [0.9, 0.95]},
    "lr_scheduler": {"name": "wsd", "decay_fraction": 0.1},
    "entrodrop": {
        "select": "entropy",
        "site": "loss",
        "threshold": {"quantile": {"shape": "linear", "start": 0.1, "end": 0.6}},
        "drop_rate": {"shape": "cosine", "start": 0.2, "end": 0.8},
        "per": "step",
    },
    "validation": {"every_n_steps": 10, "metric": "nll"},
    "checkpoint": {"keep_last": 3},
    "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": "logs"},
}
PLAN = {
    "title": "Which rate",
    "config": "tiny",
    "overrides": {"epochs": 2},
    "arms": {"plain": {"entrodrop.select": "none"}, "entropy": {"entrodrop.drop_rate": 0.5, "~adapter": None}},
    "grid": {"optimizer.lr": [0.1, 0.2], "entrodrop.preset": ["ramp", "ease"]},
    "seeds": [0, 1],
    "domains": {"math": {"data.train": "a.jsonl"}, "code": {"data.train": "b.jsonl"}},
    "sizes": {"minutes": {"seeds": [0], "arms": ["plain"], "domains": ["math"], "limit": 4}},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "config.yaml"


def config_from(file, overrides=()) -> RunConfig | None:
    try:
        return load_config(file, list(overrides))
    except UserError as error:
        assert str(file) in str(error) or any(part.strip("~") in str(error) for part in overrides), error
        return None


def plan_from(file):
    try:
        plan = read_plan(file)
        for size in (None, *plan.sizes):
            for part in plan.sized(size).by_domain().values():
                trials(part)
    except UserError as error:
        assert "Traceback" not in str(error)


def test_what_is_not_damaged_is_accepted(file):
    file.write_text(yaml.safe_dump(FULL))
    assert config_from(file).epochs == 3
    file.write_text(yaml.safe_dump(PLAN))
    assert len(trials(read_plan(file).by_domain()["math"])) == 16


@bounded(80)
@given(document=mutated(FULL))
def test_any_config(document, file):
    file.write_text(yaml.safe_dump(document))
    if (config := config_from(file)) is not None:
        assert RunConfig.model_validate(config.model_dump(mode="json", by_alias=True)) == config


@bounded(60)
@given(content=damaged(yaml.safe_dump(FULL).encode()))
def test_any_config_bytes(content, file):
    file.write_bytes(content)
    config_from(file)


@bounded(60)
@given(text=st.text(alphabet="abc:{}[]-?!&*|>'\"%@`,# \n\t0.~${}", max_size=60))
def test_any_yaml(text, file):
    file.write_text(text)
    config_from(file)


@bounded(50)
@given(
    overrides=st.lists(
        st.builds(
            "{}{}{}".format,
            st.sampled_from(["epochs", "data.train", "entrodrop.drop_rate.start", "a..b", ".", "~adapter", "~x.y", ""])
            | st.text(max_size=10),
            st.sampled_from(["=", "=", "==", ""]),
            st.text(alphabet="abc:{}[]-?!&*|'\"$,. 0", max_size=12),
        ),
        max_size=2,
    )
)
def test_any_override(overrides, file):
    file.write_text(yaml.safe_dump(FULL))
    config_from(file, overrides)


@bounded(50)
@given(document=mutated(PLAN))
def test_any_plan(document, file):
    file.write_text(yaml.safe_dump(document))
    plan_from(file)


@bounded(40)
@given(content=damaged(yaml.safe_dump(PLAN).encode()))
def test_any_plan_bytes(content, file):
    file.write_bytes(content)
    plan_from(file)


@bounded(60)
@given(item=st.text(alphabet="abc=:{}[]-?!&*|'\",. 0~", max_size=20))
def test_any_grid_or_override_on_the_command_line(item):
    for parse in (parse_grid, parse_overrides):
        try:
            parse([item])
        except UserError as error:
            assert item in str(error)


@bounded(40)
@given(value=json_values)
def test_a_value_goes_through_a_plan_unchanged(value, file):
    """From a plan's YAML to a run's override and back; where it is no valid setting, it is refused by name."""
    file.write_text(yaml.safe_dump({**PLAN, "arms": {}, "grid": {"data.system_prompt": [value]}, "sizes": {}}))
    try:
        trial = trials(read_plan(file))[0]
    except UserError:
        return
    (override,) = (text for text in trial.overrides if text.startswith("data.system_prompt="))
    file.write_text(yaml.safe_dump(FULL))
    config = config_from(file, [override])
    assert config is None or config.data.system_prompt == value
