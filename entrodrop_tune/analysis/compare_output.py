"""Show a comparison of runs: mean curves with bands, differences with intervals, Markdown, files."""

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from entrodrop_tune.analysis import pages
from entrodrop_tune.analysis.compare_runs import CONFIDENCE, METRICS, RunComparison
from entrodrop_tune.analysis.runs import Run, jsonable, run_names
from entrodrop_tune.analysis.style import INK, house_style, legend_above, save_png, series_style


def write_comparison(comparison: RunComparison, runs: Sequence[Run], output: Path) -> None:
    """Write ``comparison.json``, ``comparison.md`` and ``comparison.png`` into ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    content = jsonable(comparison.as_dict())
    (output / "comparison.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    page = pages.render("comparison.md.j2", comparison=content, metrics=METRICS)
    (output / "comparison.md").write_text(page, encoding="utf-8")
    save_comparison(comparison, runs, output / "comparison.png")


def mean_curve(runs: Sequence[Run], column: str = "nll") -> pd.DataFrame:
    """Mean of a validation column over runs at each epoch, with the half width of its 95 % t interval (0 for one)."""
    rows = pd.concat([run.validation[["epoch", column]].assign(epoch=run.validation["epoch"].round(3)) for run in runs])
    grouped = rows.dropna().groupby("epoch")[column]
    curve = pd.DataFrame({"mean": grouped.mean(), "n": grouped.size(), "sem": grouped.sem().fillna(0.0)})
    # Past the end of the shortest run the mean would jump: it is over other runs there.
    curve = curve[curve["n"] == curve["n"].max()]
    curve["half"] = np.where(curve["n"] > 1, stats.t.ppf(0.5 + CONFIDENCE / 2, curve["n"] - 1), 0) * curve["sem"]
    return curve


def draw_group_curves(axes: Axes, comparison: RunComparison, runs: Sequence[Run]) -> None:
    """Validation NLL of each group: mean over seeds with a 95 % band, single runs thin behind it."""
    by_name = dict(zip(run_names(runs), runs, strict=True))
    for index, group in enumerate(comparison.groups):
        members = [by_name[name] for name in group.runs]
        style = series_style(index)
        if len(members) > 1:
            for run in members:
                axes.plot(
                    run.validation["epoch"], run.validation["nll"], color=style["color"], linewidth=0.6, alpha=0.35
                )
        curve = mean_curve(members)
        axes.plot(curve.index, curve["mean"], **style, marker="o", markersize=3.5, label=group.name)
        axes.fill_between(
            curve.index, curve["mean"] - curve["half"], curve["mean"] + curve["half"], color=style["color"], alpha=0.15
        )
    axes.set(xlabel="epoch", ylabel="validation NLL, nats/token")
    legend_above(axes)


def draw_differences(axes: Axes, comparison: RunComparison) -> None:
    """Each group's difference to the baseline on the comparison's metric, with its 95 % interval."""
    shown = [d for d in comparison.differences if d.metric == comparison.metric and d.value is not None]
    names = [group.name for group in comparison.groups]
    for row, difference in enumerate(reversed(shown)):
        assert difference.value is not None
        colour = series_style(names.index(difference.group))["color"]
        if difference.low is not None and difference.high is not None:
            axes.plot([difference.low, difference.high], [row, row], color=colour, linewidth=2.5, alpha=0.6)
        axes.plot(difference.value, row, "o", color=colour, markersize=7)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(
        range(len(shown)), [fill(difference.group, 22, break_long_words=False) for difference in reversed(shown)]
    )
    axes.set_ylim(-0.6, max(len(shown) - 0.4, 0.6))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    _, higher = METRICS[comparison.metric]
    axes.set_xlabel(f"minus the baseline's; {'right' if higher else 'left'} is better")


def save_comparison(comparison: RunComparison, runs: Sequence[Run], path: Path) -> None:
    """Draw curves and differences side by side into a PNG."""
    with house_style():
        height = max(4.4, 1.4 + 0.42 * len(comparison.groups))
        figure = Figure(figsize=(12, height), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_group_curves(left, comparison, runs)
        draw_differences(right, comparison)
        right.set_title(f"Difference in {METRICS[comparison.metric][0]}")
        save_png(figure, path)
