import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrodrop_tune.method import PRESETS, SHAPES, Curriculum, Schedule

MONOTONE = [shape for shape in SHAPES if shape not in ("constant", "table")]


@given(st.sampled_from(MONOTONE), st.floats(0, 1), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_shapes_meet_both_ends_and_move_one_way(shape, start, end, places):
    schedule = Schedule(shape, start, end)
    assert schedule(0.0) == pytest.approx(start, abs=1e-12) and schedule(1.0) == end
    values = [schedule(x) for x in sorted(places)]
    signed = [v if end >= start else -v for v in values]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(signed))
    assert all(min(start, end) - 1e-12 <= v <= max(start, end) + 1e-12 for v in values)


@pytest.mark.parametrize(
    ("schedule", "x", "expected"),
    [
        (Schedule("constant", 0.3), 0.7, 0.3),
        (Schedule("linear", 0.8, 0.0), 0.25, 0.6),
        (Schedule("cosine", 0.0, 1.0), 0.25, (1 - math.cos(math.pi / 4)) / 2),
        (Schedule("sigmoid", 0.0, 1.0, steepness=10.0), 0.5, 0.5),
        (
            Schedule("sigmoid", 0.0, 1.0, steepness=8.0),
            0.25,
            (1 / (1 + math.exp(2)) - 1 / (1 + math.exp(4))) / (1 / (1 + math.exp(-4)) - 1 / (1 + math.exp(4))),
        ),
        (Schedule("exponential", 0.0, 1.0, steepness=3.0), 0.5, (1 - math.exp(-1.5)) / (1 - math.exp(-3))),
        (Schedule("step", 0.1, 0.9), 0.49, 0.1),
        (Schedule("step", 0.1, 0.9, at=0.2), 0.2, 0.9),
        (Schedule("table", points=((0.0, 0.2), (0.5, 0.8), (1.0, 0.0))), 0.25, 0.5),
        (Schedule("table", points=((0.5, 0.8),)), 0.1, 0.8),
        (Schedule("linear", 0.0, 1.0), 7.0, 1.0),
    ],
)
def test_values(schedule, x, expected):
    assert schedule(x) == pytest.approx(expected)


def test_presets_are_what_they_say():
    ease, ramp = (Curriculum.from_config({"preset": name}) for name in ("ease", "ramp"))
    assert ease.at(0.0) == (0.5, 0.8) and ease.at(1.0) == (0.5, 0.0)
    assert ramp.at(0.0) == (0.5, 0.0) and ramp.at(1.0) == (0.5, 0.8)
    assert ramp.at(0.2).drop_rate < 0.8 * 0.2, "a sigmoid starts slowly"


def test_preset_can_be_overridden_in_parts():
    curriculum = Curriculum.from_config({"preset": "ease", "threshold": {"nats": 0.7}, "per": "step"})
    assert curriculum.unit == "nats" and curriculum.per == "step" and curriculum.at(0) == (0.7, 0.8)
    half = Curriculum.from_config({"preset": "ramp", "drop_rate": {"end": 0.4}})
    ramp = Curriculum.from_config({"preset": "ramp"})
    assert half.at(1.0) == (0.5, 0.4) and half.at(0.3).drop_rate == pytest.approx(ramp.at(0.3).drop_rate / 2)
    cosine = Curriculum.from_config({"preset": "ramp", "drop_rate": {"shape": "cosine"}})
    assert cosine.at(0.5).drop_rate == pytest.approx(0.4) and cosine.at(1.0).drop_rate == 0.8
    assert Curriculum.from_config({"preset": "ramp", "drop_rate": 0.3}).at(0.9).drop_rate == 0.3


@pytest.mark.parametrize("name", PRESETS)
def test_state_round_trip(name):
    curriculum = Curriculum.from_config({"preset": name})
    assert Curriculum.from_config(curriculum.state_dict()) == curriculum


def test_progress_counts_epochs_or_steps():
    per_epoch = Curriculum.from_config({"preset": "ramp"})
    per_step = Curriculum.from_config({"preset": "ramp", "per": "step"})
    assert per_epoch.progress(epoch=2, epochs=5, step=77, steps=100) == 0.5
    assert per_step.progress(epoch=2, epochs=5, step=99, steps=100) == 1.0
    assert per_epoch.progress(epoch=0, epochs=1, step=0, steps=1) == 0.0


OK = {"threshold": {"quantile": 0.5}, "drop_rate": 0.5}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, "threshold"),
        ({"preset": "rampp"}, "preset"),
        ({"threshold": {"quantile": 0.5}}, "drop_rate"),
        ({**OK, "drop_rate": 1.2}, "drop_rate = 1.2"),
        ({**OK, "drop_rate": {"shape": "linear", "start": 0.5, "end": -0.1}}, "drop_rate = -0.1"),
        ({**OK, "drop_rate": {"shape": "linear", "start": 0.5}}, "drop_rate.end"),
        ({**OK, "drop_rate": {"shape": "linear", "end": 0.5}}, "drop_rate.start"),
        ({**OK, "drop_rate": {"shape": "cubic", "start": 0, "end": 1}}, "drop_rate.shape"),
        ({**OK, "drop_rate": {"shape": "linear", "start": 0, "end": 1, "at": 0.5}}, "drop_rate.at"),
        ({**OK, "drop_rate": {"shape": "step", "start": 0, "end": 1, "at": 1.5}}, "drop_rate.at = 1.5"),
        ({**OK, "drop_rate": {"shape": "sigmoid", "start": 0, "end": 1, "steepness": 0}}, "drop_rate.steepness"),
        ({**OK, "drop_rate": {"start": 0, "ends": 1}}, "drop_rate.ends"),
        ({**OK, "drop_rate": {"start": math.nan}}, "drop_rate.start"),
        ({**OK, "drop_rate": "0.5"}, "drop_rate"),
        ({**OK, "drop_rate": {"shape": "table", "points": [[0, 0.1], [0.5, 0.2], [0.4, 0.3]]}}, "drop_rate.points"),
        ({**OK, "drop_rate": {"shape": "table", "points": [[0, 0.1], [0.5, 1.2]]}}, "drop_rate = 1.2"),
        ({**OK, "drop_rate": {"shape": "table", "points": []}}, "drop_rate.points"),
        ({**OK, "drop_rate": {"shape": "table", "points": [0.1, 0.2]}}, "drop_rate.points"),
        ({**OK, "threshold": {"quantile": 1.5}}, "threshold.quantile = 1.5"),
        ({**OK, "threshold": {"nats": -1}}, "threshold.nats = -1"),
        ({**OK, "threshold": {"quantile": 0.5, "nats": 1}}, "threshold"),
        ({**OK, "threshold": 0.5}, "threshold = 0.5"),
        ({**OK, "per": "batch"}, 'per = "batch"'),
        ({**OK, "rate": 0.5}, "rate"),
    ],
)
def test_refusals_name_the_key(config, names):
    with pytest.raises(ValueError) as error:
        Curriculum.from_config(config)
    assert str(error.value).startswith(names)
