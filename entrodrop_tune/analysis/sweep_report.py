"""What a sweep found: a table over seeds, tests against the baseline, main effects, failures apart."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from statsmodels.regression.linear_model import OLS

from entrodrop_tune.analysis import pages
from entrodrop_tune.analysis.compare_output import save_comparison
from entrodrop_tune.analysis.compare_runs import METRICS, RunComparison, compare_runs, mean
from entrodrop_tune.analysis.runs import Run, jsonable, load_run
from entrodrop_tune.analysis.style import house_style, save_png, series_style
from entrodrop_tune.analysis.summary import summarize
from entrodrop_tune.analysis.sweep_plan import Plan, Trial
from entrodrop_tune.analysis.sweep_run import Result, base_evaluation
from entrodrop_tune.evaluation.results import EVAL_FILE, load_results
from entrodrop_tune.evaluation.retention import retention_index


def build_sweep_report(plan: Plan, results: Sequence[Result], output: Path) -> tuple[dict[str, Any], list[Run]]:
    """The sweep's outcome as plain JSON values, and the runs that are done."""
    done = [result for result in results if result.state == "done"]
    runs = [load_run(output / "runs" / result.trial.name) for result in done]
    trials = [result.trial for result in done]
    comparison = _compare(plan, runs, trials)
    report = {
        "schema": 1,
        "title": plan.title,
        "plan": plan.model_dump(mode="json"),
        "trials": [{**result.as_dict()["trial"], **_outcome(result)} for result in results],
        "failed": [{"name": r.trial.name, "error": r.error} for r in results if r.state == "failed"],
        "not_evaluated": [{"name": r.trial.name, "error": r.error} for r in results if r.state == "done" and r.error],
        "unfinished": [r.trial.name for r in results if r.state in ("interrupted", "not started")],
        "comparison": comparison.as_dict() if comparison else None,
        "main_effects": main_effects(plan, runs, trials),
        "retention": _retention(output, runs, trials),
        "machine": runs[0].info.get("machine") if runs else None,
        "versions": runs[0].info.get("versions") if runs else None,
    }
    return jsonable(report), runs


def _outcome(result: Result) -> dict[str, Any]:
    return {"state": result.state, "folder": result.folder, "seconds": result.seconds, "error": result.error}


def _compare(plan: Plan, runs: Sequence[Run], trials: Sequence[Trial]) -> RunComparison | None:
    if len(runs) < 2:
        return None
    groups = [trial.group for trial in trials]
    return compare_runs(runs, metric=plan.metric, baseline=_baseline(plan, groups), groups=groups)


def main_effects(plan: Plan, runs: Sequence[Run], trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """For each thing the plan varies: the plan's metric at each level, adjusted for the other factors and the seed.

    An additive linear model (least squares); with a full grid the level's value is its plain mean, and the 95 %
    interval leaves out what the other factors and the seeds explain.
    """
    factors = [*(["arm"] if len(plan.arms) > 1 else []), *(key for key, values in plan.grid.items() if len(values) > 1)]
    table = pd.DataFrame(
        [{"arm": trial.arm, **trial.settings, "seed": trial.seed, "run": i} for i, trial in enumerate(trials)]
    )
    values = pd.Series([summarize(run).as_dict()[plan.metric] for run in runs], dtype=float)
    known = values.notna()
    if not known.any():
        return []
    blocks = [*factors, *(["seed"] if len(plan.seeds) > 1 else [])]
    dummies = {name: pd.get_dummies(table[name].astype(str)[known], drop_first=True, dtype=float) for name in blocks}
    design = pd.concat(
        [pd.Series(1.0, index=values[known].index, name="all"), *dummies.values()], axis=1, keys=["", *blocks]
    )
    fit = OLS(values[known], design).fit()
    return [
        {"factor": factor, "levels": _levels(fit, design, table[factor].astype(str)[known], factor)}
        for factor in factors
    ]


def _levels(fit: Any, design: pd.DataFrame, column: pd.Series, factor: str) -> list[dict[str, Any]]:
    levels = []
    for level in dict.fromkeys(column):
        row = design.mean()
        if factor in design.columns.get_level_values(0):
            row.loc[factor] = (design[factor].columns == level).astype(float)
        value, half = float(row.to_numpy() @ fit.params.to_numpy()), None
        if fit.df_resid > 0:
            half = float(np.ravel(fit.t_test(row.to_numpy()).conf_int())[1]) - value
        levels.append({"level": level, "value": value, "half_width": half, "n": int((column == level).sum())})
    return levels


def _retention(output: Path, runs: Sequence[Run], trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Retention index of each group: mean over its runs; empty where nothing was evaluated."""
    rows = []
    for run, trial in zip(runs, trials, strict=True):
        base, tuned = base_evaluation(output, run.config["model"]["path"]), run.path / "eval"
        if (base / EVAL_FILE).is_file() and (tuned / EVAL_FILE).is_file():
            found = retention_index(load_results(base), load_results(tuned))
            if found is not None and found.index is not None:
                rows.append({"group": trial.group, "index": found.index.value})
    if not rows:
        return []
    grouped = pd.DataFrame(rows).groupby("group", sort=False)["index"]
    return [{"group": name, **mean(values).__dict__} for name, values in grouped]


def draw_main_effects(axes: Axes, effect: dict[str, Any]) -> None:
    """Mean of the metric at each level of one factor, with 95 % intervals."""
    places = range(len(effect["levels"]))
    colour = series_style(0)["color"]
    for place, level in zip(places, effect["levels"], strict=True):
        if level["half_width"] is not None:
            low, high = level["value"] - level["half_width"], level["value"] + level["half_width"]
            axes.plot([place, place], [low, high], color=colour, linewidth=2.5, alpha=0.5)
    axes.plot(places, [level["value"] for level in effect["levels"]], "o-", color=colour, linewidth=1)
    long = max(len(level["level"]) for level in effect["levels"]) > 8
    axes.set_xticks(
        places,
        [level["level"] for level in effect["levels"]],
        rotation=30 if long else 0,
        ha="right" if long else "center",
    )
    axes.margins(x=0.15)
    axes.set_title(effect["factor"])


def write_sweep_report(
    report: dict[str, Any], plan: Plan, runs: Sequence[Run], output: Path, groups: Sequence[str]
) -> None:
    """Write ``sweep.json``, ``sweep.md``, ``sweep.png`` and, where it varies anything, ``main_effects.png``."""
    (output / "sweep.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (output / "sweep.md").write_text(pages.render("sweep.md.j2", sweep=report, metrics=METRICS), encoding="utf-8")
    if report["comparison"]:
        comparison = compare_runs(runs, metric=plan.metric, baseline=_baseline(plan, groups), groups=groups)
        save_comparison(comparison, runs, output / "sweep.png")
    effects = report["main_effects"]
    if effects:
        with house_style():
            figure = Figure(figsize=(4.4 * len(effects), 3.8), layout="constrained")
            panels = figure.subplots(1, len(effects), sharey=True, squeeze=False)[0]
            panels[0].set_ylabel(METRICS[plan.metric][0])
            for axes, effect in zip(panels, effects, strict=True):
                draw_main_effects(axes, effect)
            save_png(figure, output / "main_effects.png")


def write_overview(reports: Mapping[str, dict[str, Any]], plan: Plan, output: Path) -> None:
    """Write ``domains.json`` and ``domains.md``: every domain's groups and what they differ from its baseline by."""
    rows = [
        {"domain": domain, "group": d["group"], **{key: d[key] for key in ("value", "half_width", "p", "n", "outcome")}}
        for domain, report in reports.items()
        for d in (report["comparison"] or {"differences": []})["differences"]
        if d["metric"] == plan.metric
    ]
    overview = {"schema": 1, "title": plan.title, "metric": plan.metric, "rows": rows}
    (output / "domains.json").write_text(json.dumps(overview, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    page = pages.render("domains.md.j2", overview=overview, reports=reports, words=METRICS[plan.metric][0])
    (output / "domains.md").write_text(page, encoding="utf-8")


def _baseline(plan: Plan, groups: Sequence[str]) -> str | None:
    """The plan's, unless none of its runs is done."""
    return plan.baseline if plan.baseline in groups else None
