"""Packages that do not fit are named at the start, with the command that mends them, before anything is imported."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from entrodrop_tune import versions
from entrodrop_tune.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def installed(monkeypatch):
    """Set which version of a package is found; None is a package that is not installed."""

    def fake(**found):
        def version(name):
            key = name.replace("-", "_")
            if key not in found:
                return real(name)
            if found[key] is None:
                raise PackageNotFoundError(name)
            return found[key]

        monkeypatch.setattr(versions, "version", version)

    real = versions.version
    return fake


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        versions.require_supported_versions()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_installed_here_fits():
    versions.require_supported_versions()


def test_the_ranges_are_those_of_pyproject():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    known = {str(r) for text in versions._requirements() if not (r := Requirement(text)).marker}
    assert {str(Requirement(text)) for text in listed} == known, "pyproject.toml has changed: pip install -e ."


@pytest.mark.parametrize(
    ("name", "found", "complaint"),
    [
        ("torchao", "0.16.0", "torchao 0.16.0 does not fit, it must be <0.16,>=0.13"),
        ("torchtune", "0.5.0", "torchtune 0.5.0 does not fit, it must be ==0.6.1"),
        ("torch", "2.14.1+cu130", "torch 2.14.1+cu130 does not fit, it must be <2.14,>=2.13"),
        ("lm_eval", "0.4.12", "lm-eval 0.4.12 does not fit"),
        ("transformers", "4.57.0", "transformers 4.57.0 does not fit"),
        ("peft", None, "peft is not installed"),
    ],
)
def test_a_version_that_does_not_fit_is_named_with_the_pip_line(installed, name, found, complaint):
    installed(**{name: found})
    message = refusal()
    assert complaint in message
    (needs,) = (
        r for r in map(Requirement, versions._requirements()) if r.name.replace("-", "_") == name and not r.marker
    )
    assert message.endswith(f'Run: python -m pip install "{needs}"')


@pytest.mark.parametrize("found", ["2.13.0+cpu", "2.13.1", "2.13.2.dev20260101"])
def test_builds_within_the_range_fit(installed, found):
    installed(torch=found)
    versions.require_supported_versions()


def test_all_complaints_come_at_once_with_one_pip_line(installed):
    installed(torchao="0.17", peft="0.19.1")
    message = refusal()
    assert "torchao 0.17" in message and "peft 0.19.1" in message and message.count("pip install") == 1


def test_a_tree_that_was_never_installed_is_not_refused(monkeypatch):
    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "requires", requires)
    versions.require_supported_versions()


def test_the_command_and_the_recipe_say_so_before_they_fail_to_import(tmp_path):
    """A torchao that torchtune cannot import with: metadata and package are both replaced."""
    (tmp_path / "torchao-0.17.0.dist-info").mkdir()
    (tmp_path / "torchao-0.17.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchao\nVersion: 0.17.0\n"
    )
    (tmp_path / "torchao.py").write_text("raise ImportError('not that torchao')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "entrodrop_tune.cli.main", "run", "full_finetune", "--config", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torchao 0.17.0 does not fit") and done.stderr.count("\n") == 1
