"""What a sweep runs: arms and a grid of config keys, times seeds, as a list of trials."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from entrodrop_tune.config import Section, load_mapping, validate
from entrodrop_tune.errors import UserError, did_you_mean

NAME_LENGTH = 80
SET_BY_SWEEP = {
    "seed": "list them under seeds, or give --seeds",
    "output_dir": "give --output",
    "resume": "it always goes on where it stopped",
}
"""Config keys that a sweep sets itself, and what to do instead."""


class Size(Section):
    """How large to run a plan: anything here overrides the plan's own."""

    seeds: tuple[int, ...] | None = None
    """Seeds of every arm."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Config keys for every run (fewer epochs, another model)."""
    arms: tuple[str, ...] | None = None
    """Only these arms, by name."""
    domains: tuple[str, ...] | None = None
    """Only these domains, by name."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Other values for keys of the grid."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many rows of the training data, and half as many of the validation data."""
    evaluate: str | None = None
    """Suite to evaluate each run's best checkpoint on, for retention."""


class Plan(Section):
    """A sweep, as a YAML file holds it. Keys of overrides, arms and grid are dotted config keys.

    The special key ``recipe`` in an arm chooses another recipe; a key ``~name`` removes a section.
    """

    title: str
    """What question it answers, in one line."""
    config: str
    """Training config: a file beside the plan, or a short name from ``entrodrop ls``."""
    recipe: str = "lora_finetune"
    """Recipe by short name."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Config keys for every run."""
    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Named sets of config keys."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Config key -> values; all combinations, within every arm."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every combination."""
    domains: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Data sets, each a set of config keys: the whole plan is run, and compared, once for each."""
    baseline: str | None = None
    """Group the others are compared with: an arm, with a grid the arm and its cell; the first when omitted."""
    metric: str = "best_nll"
    """What decides between arms."""
    evaluate: str | None = None
    """Suite to evaluate each run's best checkpoint on, for retention."""
    sizes: dict[str, Size] = Field(default_factory=dict)
    """Smaller and larger versions of the same plan, by name."""

    def by_domain(self, names: Sequence[str] | None = None) -> dict[str | None, "Plan"]:
        """The plan once for each of its domains (the named ones), or itself under None where it has none.

        Raises:
            UserError: a domain that the plan does not have.
        """
        domains = _chosen(self.domains, names or None, "the plan has no domain")
        if not domains:
            return {None: self}
        return {
            name: self.model_copy(
                update={"title": f"{self.title} – {name}", "overrides": {**keys, **self.overrides}, "domains": {}}
            )
            for name, keys in domains.items()
        }

    def sized(self, size: str | None) -> "Plan":
        """The plan at one of its sizes.

        Raises:
            UserError: the plan has no such size, or the size names an arm or a domain that is not there, or limits
                the rows of a plan without domains.
        """
        if size is None:
            return self
        if size not in self.sizes:
            raise UserError(f'the plan has no size "{size}".{did_you_mean(size, self.sizes)}')
        chosen = self.sizes[size]
        domains = _chosen(self.domains, chosen.domains, f'size "{size}" names the domain')
        if chosen.limit is not None:
            if not domains:
                raise UserError(f'size "{size}" has a limit, which applies to domains: the plan has none.')
            domains = {name: _limited(keys, chosen.limit) for name, keys in domains.items()}
        update: dict[str, Any] = {
            "arms": _chosen(self.arms, chosen.arms, f'size "{size}" names the arm'),
            "domains": domains,
            "grid": {**self.grid, **chosen.grid},
            "overrides": {**self.overrides, **chosen.overrides},
            "sizes": {},
        }
        update |= {"seeds": chosen.seeds} if chosen.seeds is not None else {}
        update |= {"evaluate": chosen.evaluate} if chosen.evaluate is not None else {}
        return self.model_copy(update=update)


def _chosen(options: dict[str, Any], names: Sequence[str] | None, what: str) -> dict[str, Any]:
    """The named ones; all where nothing is named."""
    for name in names or ():
        if name not in options:
            raise UserError(f'{what} "{name}".{did_you_mean(name, options)}')
    return options if names is None else {name: options[name] for name in names}


def _limited(keys: dict[str, Any], limit: int) -> dict[str, Any]:
    """A domain's keys with fewer rows."""
    rows = {"data.train": limit, "data.validation": max(1, limit // 2)}

    def fewer(key: str, value: Any) -> Any:
        if key not in rows:
            return value
        source = value if isinstance(value, dict) else {"path": value}
        return {**source, "limit": min(rows[key], source.get("limit") or rows[key])}

    return {key: fewer(key, value) for key, value in keys.items()}


@dataclass(frozen=True)
class Trial:
    """One run of a sweep. ``settings`` are its arm's and grid's keys; ``overrides`` what the recipe is started with."""

    name: str
    group: str
    arm: str | None
    settings: dict[str, Any]
    seed: int
    recipe: str
    overrides: tuple[str, ...]


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        UserError: it is missing or malformed.
    """
    plan = validate(Plan, load_mapping(path), source=str(path))
    beside = path.parent / plan.config
    return plan.model_copy(update={"config": str(beside)}) if beside.is_file() else plan


def parse_grid(items: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """``["lr=1e-4,1e-3"]`` -> ``{"lr": (1e-4, 1e-3)}``; a value with commas or braces is written as YAML: ``k=[a,b]``.

    Raises:
        UserError: an item without ``=``, without a value, or given twice.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key or not text:
            raise UserError(f'cannot read --grid "{item}": write key=value,value, for example optimizer.lr=1e-4,1e-3.')
        if key in grid:
            raise UserError(f'--grid names "{key}" twice: put all its values into one.')
        listed = _yaml(text if text.startswith("[") else f"[{text}]", item)
        grid[key] = tuple(_number(value) for value in listed)
    return grid


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """``["epochs=3", "~adapter"]`` -> ``{"epochs": 3, "~adapter": None}``; the last of several for a key holds.

    Raises:
        UserError: an item that is neither ``key=value`` nor ``~key``.
    """
    overrides: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if item.startswith("~"):
            overrides[item] = None
        elif equals and key:
            overrides[key] = _number(_yaml(text, item))
        else:
            raise UserError(f'cannot read override "{item}": write key=value, for example epochs=3.')
    return overrides


def _yaml(text: str, item: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(
            f'cannot read "{item}": the value must be YAML, with text that holds , or : in quotes.'
        ) from None


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4 as text.
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def trials(plan: Plan) -> list[Trial]:
    """Every run of ``plan``: seeds innermost last, so that all arms have one seed before any has two.

    Raises:
        UserError: two combinations would be the same run; a key that the sweep sets itself; a baseline that is no
            group of the plan.
    """
    for key in itertools.chain(plan.overrides, plan.grid, *plan.arms.values()):
        if key in SET_BY_SWEEP:
            raise UserError(f'a sweep sets "{key}" itself: {SET_BY_SWEEP[key]}.')
    arms: list[tuple[str | None, dict[str, Any]]] = [*plan.arms.items()] or [(None, {})]
    combinations = [dict(zip(plan.grid, values, strict=True)) for values in itertools.product(*plan.grid.values())]
    found: dict[str, Trial] = {}
    for seed in plan.seeds:
        for (arm, own), cell in itertools.product(arms, combinations):
            group = (
                ", ".join([*([arm] if arm else []), *(f"{_short(k, plan.grid)}={v}" for k, v in cell.items())]) or "all"
            )
            settings = {**own, **cell}
            name = f"{slug(group)}-seed{seed}"
            if name in found:
                raise UserError(f'two runs of the sweep would be called "{name}": remove the repeated value or seed.')
            merged = {**plan.overrides, **settings, "seed": seed}
            recipe = str(merged.pop("recipe", plan.recipe))
            overrides = tuple(_override(key, value) for key, value in merged.items())
            found[name] = Trial(name, group, arm, settings, seed, recipe, overrides)
    groups = dict.fromkeys(trial.group for trial in found.values())
    if plan.baseline is not None and plan.baseline not in groups:
        raise UserError(f'no group of the plan is its baseline "{plan.baseline}".{did_you_mean(plan.baseline, groups)}')
    return list(found.values())


def _short(key: str, grid: dict[str, Any]) -> str:
    leaf = key.rpartition(".")[2]
    return leaf if sum(other.rpartition(".")[2] == leaf for other in grid) == 1 else key


def slug(text: str) -> str:
    """``text`` as a file name."""
    return re.sub(r"[^A-Za-z0-9.=_+-]+", "_", text).strip("_")[:NAME_LENGTH]


def _override(key: str, value: Any) -> str:
    if key.startswith("~"):
        return key
    return f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix('...' + chr(10)).strip()}"
