"""README, CITATION, CHANGELOG, pyproject and the CI workflow agree with each other."""

import re
import tomllib

import yaml

import entrodrop_tune
from tests.docs.markdown import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_links_of_the_readme_exist():
    for name in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
        assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == entrodrop_tune.__version__
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_ci_tries_every_python_that_the_package_claims():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    claimed = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if text.startswith("Programming Language")}
    assert {row["python"] for row in matrix if row["constraints"] == "constraints.txt"} == claimed
    assert any(row["constraints"] != "constraints.txt" for row in matrix)


def test_every_upper_bound_says_why():
    """The comment stands above the requirement, or above the group of lines it belongs to."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.match(r'^  "[\w\-\[\],]+[^"]*(<|==)', line):
            assert any(text.lstrip().startswith("#") for text in lines[max(0, number - 3) : number]), line


def test_every_tested_version_is_pinned_within_the_bounds():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {canonicalize_name(n): v for n, v in re.findall(r"^([\w.\-]+)==(\S+)$", constraints, re.MULTILINE)}
    extras = PROJECT["optional-dependencies"].values()
    listed = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    for requirement in map(Requirement, listed):
        name = canonicalize_name(requirement.name)
        if name not in ("entrodrop-tune", "setuptools"):  # pip freeze lists neither
            assert name in pins and requirement.specifier.contains(pins[name], prereleases=True), requirement
