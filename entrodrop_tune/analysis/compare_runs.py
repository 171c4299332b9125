"""Compare training runs: group them by configuration, seeds within a group, and test the groups against a baseline."""

import bisect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from entrodrop_tune.analysis.run_groups import comparable, distinguishing, group_names
from entrodrop_tune.analysis.runs import Run, run_names
from entrodrop_tune.analysis.summary import summarize
from entrodrop_tune.errors import UserError, did_you_mean

CONFIDENCE, POWER = 0.95, 0.8
MAX_SEEDS = 1000  # a difference that needs more seeds than this is none that training could show
METRICS: dict[str, tuple[str, bool]] = {
    "best_nll": ("best validation NLL", False),
    "final_nll": ("final validation NLL", False),
    "degradation": ("final minus best NLL", False),
    "effective_epochs": ("useful epochs", True),
    "best_token_accuracy": ("token accuracy at best", True),
    "tokens_per_second": ("target tokens a second", True),
    "seconds_to_best": ("seconds of training to the best validation", False),
}
"""What groups can be compared by: its name in words, and whether higher is better."""
COLUMNS = (*METRICS, "best_epoch", "kept_fraction", "peak_memory_bytes", "train_seconds")
NATS = ("best_nll", "final_nll", "degradation")


@dataclass(frozen=True)
class Mean:
    """Mean over seeds with the half width of its 95 % t interval (None with one seed)."""

    value: float | None
    half_width: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    name: str
    settings: dict[str, Any]
    """What sets this group apart from the others, by dotted key."""
    runs: list[str]
    seeds: list[Any]
    means: dict[str, Mean]
    censored: int
    """Runs whose validation NLL ended within 1 % of its best: their useful epochs are a lower bound."""


@dataclass(frozen=True)
class Difference:
    """Group minus baseline on one metric. ``p`` is two-sided, Holm-adjusted over the groups."""

    group: str
    baseline: str
    metric: str
    test: Literal["paired t", "Welch t"] | None
    n: tuple[int, int]
    value: float | None
    half_width: float | None
    p: float | None
    seeds_needed: int | None
    """Seeds a group to show a difference of this size with power 0.8; None: cannot be said, or over 1,000."""
    outcome: Literal["better", "worse", "not shown", "one seed", "no spread", "identical", "no data"]

    @property
    def low(self) -> float | None:
        return None if self.value is None or self.half_width is None else self.value - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.value is None or self.half_width is None else self.value + self.half_width


@dataclass(frozen=True)
class RunComparison:
    metric: str
    groups: list[Group]
    differences: list[Difference]
    verdicts: list[str]
    table: pd.DataFrame = field(repr=False)
    """A row a run: its group, seed and summary numbers."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "metric": self.metric,
            "verdicts": self.verdicts,
            "groups": [asdict(group) for group in self.groups],
            "differences": [asdict(difference) for difference in self.differences],
            "runs": self.table.to_dict("records"),
        }


def compare_runs(
    runs: Sequence[Run], metric: str = "best_nll", baseline: str | None = None, groups: Sequence[str] | None = None
) -> RunComparison:
    """Compare groups of runs on ``metric`` against ``baseline`` (a group's or a run's name; the first group if None).

    ``groups`` names each run's group; by default, runs that differ in nothing but their seed form one.

    Groups with the same seeds are compared seed by seed (paired t test), others by Welch's t test.

    Raises:
        UserError: fewer than two runs, an unknown metric or baseline.
    """
    if metric not in METRICS:
        raise UserError(f'no metric "{metric}" to compare runs by.{did_you_mean(metric, METRICS)}')
    if len(runs) < 2:
        raise UserError("a comparison needs at least two runs.")
    table = run_table(runs, groups or group_names(runs))
    found = [_group(name, part, runs) for name, part in table.groupby("group", sort=False)]
    reference = _find_baseline(found, table, baseline)
    others = [group for group in found if group is not reference]
    differences = [difference for key in METRICS for difference in _differences(table, others, reference.name, key)]
    verdicts = [verdict(difference) for difference in differences if difference.metric == metric]
    if not others:
        mean = reference.means[metric]
        verdicts = [f"All {len(runs)} runs have the same configuration: {METRICS[metric][0]} {_plus_minus(mean)}."]
    return RunComparison(metric, found, differences, verdicts, table)


def run_table(runs: Sequence[Run], groups: Sequence[str]) -> pd.DataFrame:
    """A row a run: ``run``, ``group``, ``seed`` and the numbers of its summary."""
    rows = []
    for run, name, group in zip(runs, run_names(runs), groups, strict=True):
        rows.append({"run": name, "group": group, "seed": run.config.get("seed"), **summarize(run).as_dict()})
    table = pd.DataFrame(rows)
    numeric = [*COLUMNS, "start_nll", "final_train_nll", "lowest_epoch_kept_fraction"]
    table[numeric] = table[numeric].astype(float)
    return table


def _group(name: Any, part: pd.DataFrame, runs: Sequence[Run]) -> Group:
    names = run_names(runs)
    settings = distinguishing([comparable(run) for run in runs])
    return Group(
        name=str(name),
        settings=settings[names.index(part["run"].iloc[0])],
        runs=list(part["run"]),
        seeds=list(part["seed"]),
        means={column: mean(part[column]) for column in COLUMNS},
        censored=int(part["effective_censored"].sum()),
    )


def mean(values: pd.Series) -> Mean:
    """Mean and half width of the 95 % t interval over seeds."""
    values = values.dropna()
    n = len(values)
    if n == 0:
        return Mean(None, None, 0)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * stats.sem(values) if n > 1 else None
    return Mean(float(values.mean()), None if half is None else float(half), n)


def _find_baseline(groups: list[Group], table: pd.DataFrame, name: str | None) -> Group:
    if name is None:
        return groups[0]
    for group in groups:
        if name == group.name or name in group.runs:
            return group
    options = {*(group.name for group in groups), *table["run"]}
    raise UserError(f'no group or run "{name}" for the baseline.{did_you_mean(name, options)}')


def _differences(table: pd.DataFrame, groups: list[Group], baseline: str, metric: str) -> list[Difference]:
    raw = [_difference(table, group.name, baseline, metric) for group in groups]
    tested = [index for index, difference in enumerate(raw) if difference["p"] is not None]
    if tested:
        adjusted = multipletests([raw[index]["p"] for index in tested], method="holm")[1]
        for index, p in zip(tested, adjusted, strict=True):
            raw[index]["p"] = float(p)
    return [Difference(**difference, outcome=_outcome(difference, metric)) for difference in raw]


def _difference(table: pd.DataFrame, group: str, baseline: str, metric: str) -> dict[str, Any]:
    a, b = (
        table[table["group"] == name].dropna(subset=[metric]).set_index("seed")[metric] for name in (group, baseline)
    )
    result: dict[str, Any] = {"group": group, "baseline": baseline, "metric": metric, "n": (len(a), len(b))}
    result |= {"test": None, "value": None, "half_width": None, "p": None, "seeds_needed": None}
    if not len(a) or not len(b):
        return result
    paired = a.index.is_unique and b.index.is_unique and set(a.index) == set(b.index)
    result["value"] = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return result
    deltas = (a - b.loc[a.index]).to_numpy() if paired else None
    spread = deltas.std(ddof=1) if deltas is not None else np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    if spread <= 1e-12:
        return result
    test = stats.ttest_rel(a, b.loc[a.index]) if paired else stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return result | {
        "test": "paired t" if paired else "Welch t",
        "half_width": float(high - low) / 2,
        "p": float(test.pvalue),
        "seeds_needed": seeds_needed(result["value"] / spread, paired),
    }


def seeds_needed(effect_size: float, paired: bool) -> int | None:
    """Seeds a group to show ``effect_size`` (mean over standard deviation) at 5 % with power 0.8; None over 1,000."""
    solver, alpha = (TTestPower() if paired else TTestIndPower()), 1 - CONFIDENCE
    # Not solve_power: its root finder fails to converge where two or three seeds are enough.
    counts = range(2, MAX_SEEDS + 1)
    index = bisect.bisect_left(counts, POWER, key=lambda n: float(solver.power(abs(effect_size), n, alpha)))
    return counts[index] if index < len(counts) else None


def _outcome(difference: dict[str, Any], metric: str) -> Any:
    value, p = difference["value"], difference["p"]
    if value is None:
        return "no data"
    if p is None:
        if value == 0:
            return "identical"
        return "one seed" if min(difference["n"]) < 2 else "no spread"
    if p >= 1 - CONFIDENCE:
        return "not shown"
    return "better" if (value > 0) == METRICS[metric][1] else "worse"


def verdict(d: Difference) -> str:
    """The comparison in one sentence, with its uncertainty, or with what it would take to know."""
    words, _ = METRICS[d.metric]
    unit = " nats" if d.metric in NATS else ""
    if d.outcome == "no data" or d.value is None:
        return f"{d.group} and {d.baseline} cannot be compared: one has no {words}."
    size = f"{abs(d.value):.3f}{unit}"
    if d.outcome in ("better", "worse"):
        seeds = f"{d.n[0]} seeds" if d.n[0] == d.n[1] else f"{d.n[0]} and {d.n[1]} seeds"
        return (
            f"{d.group} is {d.outcome} than {d.baseline} by {size} ± {d.half_width:.3f} in {words} "
            f"({seeds}, {d.test} test, {_p(d.p)})."
        )
    if d.outcome == "identical":
        return f"{d.group} and {d.baseline} have the same {words}."
    more = "higher" if d.value > 0 else "lower"
    if d.outcome == "one seed":
        return (
            f"{d.group}: {words} {size} {more} than {d.baseline}, with too few seeds to tell this from chance; run "
            "at least 3 seeds of each."
        )
    if d.outcome == "no spread":
        return f"{d.group}: {words} {size} {more} than {d.baseline} in every seed; without spread there is no test."
    needed = f"about {d.seeds_needed} would be needed" if d.seeds_needed else f"over {MAX_SEEDS:,} would be needed"
    return (
        f"No difference in {words} between {d.group} and {d.baseline} can be shown with {min(d.n)} seeds "
        f"({d.value:+.3f} ± {d.half_width:.3f}{unit}, {_p(d.p)}); {needed} for one of this size."
    )


def _p(p: float | None) -> str:
    return "p=?" if p is None else "p<0.001" if p < 0.001 else f"p={p:.3f}"


def _plus_minus(value: Mean) -> str:
    if value.value is None:
        return "not measured"
    return f"{value.value:.3f}" + (f" ± {value.half_width:.3f} over {value.n} seeds" if value.half_width else "")
