"""Configuration errors name the key, its value and the nearest valid key, and nothing is loaded before."""

from typing import Literal

import pytest
from pydantic import Field

from entrodrop_tune.config import Section, load_mapping, validate
from entrodrop_tune.errors import UserError


class Inner(Section):
    rate: float = Field(0.5, ge=0, le=1)


class Outer(Section):
    name: str
    mode: Literal["entropy", "random"] = "entropy"
    inner: Inner = Inner()
    maybe: Inner | None = None


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"nmae": "x", "name": "y"}, 'unknown key "nmae". Did you mean "name"?'),
        ({"name": "x", "inner": {"rat": 1}}, 'unknown key "inner.rat". Did you mean "rate"?'),
        ({"name": "x", "maybe": {"rat": 1}}, 'unknown key "maybe.rat". Did you mean "rate"?'),
        ({"name": "x", "Inner": {}}, 'unknown key "Inner". Did you mean "inner"?'),
        ({"name": "x", "zzz": 1}, "Choose from: inner, maybe, mode, name."),
        ({}, '"name" is required.'),
        ({"name": "x", "inner": {"rate": 2}}, '"inner.rate" = 2: Input should be less than or equal to 1.'),
        ({"name": "x", "mode": "entropie"}, "\"mode\" = 'entropie': Input should be 'entropy' or 'random'."),
    ],
)
def test_messages(mapping, message):
    with pytest.raises(UserError) as caught:
        validate(Outer, mapping)
    assert message in str(caught.value)


def test_every_mistake_is_listed():
    with pytest.raises(UserError) as caught:
        validate(Outer, {"nmae": "x", "inner": {"rate": -1}})
    assert all(part in str(caught.value) for part in ("nmae", "inner.rate", '"name" is required'))


def test_overrides_set_and_remove_keys(tmp_path):
    path = write(tmp_path, "name: a\ninner: {rate: 0.1}\n")
    assert load_mapping(path, ["inner.rate=0.9", "mode=random"]) == {
        "name": "a",
        "inner": {"rate": 0.9},
        "mode": "random",
    }
    assert load_mapping(path, ["~inner.rate"]) == {"name": "a", "inner": {}}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs"], "write key=value"),
        (["--epochs=3"], "write key=value"),
        (["~nothing"], 'cannot remove "nothing"'),
        (["~name.first"], 'cannot remove "name.first"'),
        (["name=${missing}"], "missing"),
    ],
)
def test_bad_overrides(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message.replace("$", "")):
        load_mapping(write(tmp_path, "name: a\n"), overrides)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write(tmp_path, "name: a\n")
    with pytest.raises(UserError, match=r'does not exist. Did you mean "config.yaml"'):
        load_mapping(tmp_path / "confg.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "name: [1\n", "name: 'a\n", "\x00"])
def test_broken_yaml_is_one_line(tmp_path, text):
    with pytest.raises(UserError) as caught:
        load_mapping(write(tmp_path, text))
    assert "\n" not in str(caught.value) and "config.yaml" in str(caught.value)


def test_open_values_are_named(tmp_path):
    with pytest.raises(UserError, match=r'leaves "inner.rate" open: add inner.rate=VALUE'):
        load_mapping(write(tmp_path, "name: a\ninner:\n  rate: ???\n"))
