"""Pictures of training runs: each function draws one panel on given axes, for one run or several over each other."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from entrodrop_tune.analysis.run_groups import group_names
from entrodrop_tune.analysis.runs import Run, run_names
from entrodrop_tune.analysis.style import (
    BLUE,
    INK,
    OCHRE,
    ORANGE,
    PINK,
    SERIES,
    TEAL,
    VIOLET,
    house_style,
    legend_above,
    save_png,
    series_style,
)

MAX_POINTS = 1500


def thin(frame: pd.DataFrame, points: int = MAX_POINTS) -> pd.DataFrame:
    """At most ``points`` rows: means over equal stretches of steps, so that spikes still leave a trace."""
    if len(frame) <= points:
        return frame
    bins = np.arange(len(frame)) * points // len(frame)
    return frame.groupby(bins).mean(numeric_only=True)


def labelled(runs: Sequence[Run]) -> Iterator[tuple[int, Run, str | None]]:
    """(index of the line's style, run, name in the legend): a run each, or a group each where runs are many."""
    names = run_names(runs) if len(runs) <= len(SERIES) else group_names(runs)
    order = list(dict.fromkeys(names))
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        yield order.index(name), run, name if names.index(name) == place else None


def draw_nll(axes: Axes, runs: Sequence[Run]) -> None:
    """Training NLL over all tokens, kept or not, and validation NLL; a dot marks the best validation."""
    single = len(runs) == 1
    for index, run, name in labelled(runs):
        style: dict[str, Any] = {"color": ORANGE, "linestyle": "-"} if single else series_style(index)
        train = thin(run.metrics.dropna(subset=["nll_all"]))
        window = max(1, min(len(train) // 20, int(run.info.get("steps_per_epoch") or 20)))
        smooth = train["nll_all"].rolling(window, min_periods=1).mean()
        if single:
            axes.plot(train["epoch"], train["nll_all"], color=BLUE, linewidth=0.8, alpha=0.3)
        axes.plot(
            train["epoch"],
            smooth,
            color=BLUE if single else style["color"],
            linewidth=1.8 if single else 1.0,
            alpha=1 if single else 0.55,
            label="training" if single else None,
        )
        rows = run.validation.dropna(subset=["nll"])
        axes.plot(
            rows["epoch"],
            rows["nll"],
            **style,
            marker="o",
            markersize=3.5,
            label="validation" if single else name,
        )
        if len(rows):
            best = rows.loc[rows["nll"].idxmin()]
            axes.plot(
                best["epoch"], best["nll"], "o", markersize=9, markerfacecolor="none", markeredgecolor=style["color"],
                label=f"best {best['nll']:.3f}" if single else None,
            )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="NLL, nats/token")
    legend_above(axes)


def draw_curriculum(axes: Axes, runs: Sequence[Run]) -> None:
    """Drop rate (left axis) and threshold in nats (right axis)."""
    single = len(runs) == 1
    right = axes.twinx()
    for index, run, name in labelled(runs):
        frame = thin(run.metrics)
        colour = VIOLET if single else series_style(index)["color"]
        axes.plot(frame["epoch"], frame["drop_rate"], color=colour, label="drop rate" if single else name)
        right.plot(
            frame["epoch"],
            frame["threshold"],
            color=TEAL if single else colour,
            linestyle=":",
            label="threshold" if single else None,
        )
    axes.set(xlabel="epoch", ylabel="drop rate", ylim=(-0.03, 1.03))
    right.set_ylabel("threshold, nats (dotted)")
    right.grid(False)
    right.spines["right"].set_visible(True)
    highest = max(
        (run.metrics["threshold"].max() for run in runs if run.metrics["threshold"].notna().any()), default=1.0
    )
    right.set_ylim(0, 1.1 * highest or 1.0)
    legend_above(axes, [*axes.lines, *(right.lines if single else [])])


def draw_kept(axes: Axes, runs: Sequence[Run]) -> None:
    """Share of target tokens that gave loss."""
    _draw_column(axes, runs, "kept_fraction", "tokens kept", TEAL)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def draw_entropy(axes: Axes, runs: Sequence[Run]) -> None:
    """Mean entropy over training tokens (line) and validation tokens (dots)."""
    _draw_column(axes, runs, "entropy_mean", "mean entropy, nats", BLUE)
    for index, run, _ in labelled(runs):
        rows = run.validation.dropna(subset=["entropy_mean"])
        colour = ORANGE if len(runs) == 1 else series_style(index)["color"]
        label = "validation" if len(runs) == 1 and len(rows) else None
        axes.plot(rows["epoch"], rows["entropy_mean"], "o-", color=colour, markersize=3.5, label=label)
    if len(runs) == 1:
        legend_above(axes)
    axes.set_ylim(bottom=0)


def _draw_column(axes: Axes, runs: Sequence[Run], column: str, label: str, colour: str) -> None:
    for index, run, name in labelled(runs):
        frame = thin(run.metrics.dropna(subset=[column]))
        style: dict[str, Any] = {"color": colour, "linestyle": "-"} if len(runs) == 1 else series_style(index)
        window = max(1, len(frame) // 40)
        axes.plot(frame["epoch"], frame[column], color=style["color"], linewidth=0.8, alpha=0.3)
        axes.plot(
            frame["epoch"],
            frame[column].rolling(window, min_periods=1).mean(),
            **style,
            label="training" if len(runs) == 1 else name,
        )
    axes.set(xlabel="epoch", ylabel=label)
    if len(runs) > 1:
        legend_above(axes)


def draw_halves(axes: Axes, runs: Sequence[Run]) -> None:
    """Change of validation NLL since the start, of the low- and the high-entropy half of the validation tokens."""
    single = len(runs) == 1
    for index, run, name in labelled(runs):
        rows = run.validation.dropna(subset=["nll_low_entropy", "nll_high_entropy"])
        if not len(rows):
            continue
        low = rows["nll_low_entropy"] - rows["nll_low_entropy"].iloc[0]
        high = rows["nll_high_entropy"] - rows["nll_high_entropy"].iloc[0]
        colour = series_style(index)["color"]
        axes.plot(
            rows["epoch"], low, "o-", markersize=3.5, color=TEAL if single else colour,
            label="low-entropy half" if single else name,
        )  # fmt: skip
        axes.plot(
            rows["epoch"], high, "s--", markersize=3.5, color=ORANGE if single else colour,
            label="high-entropy half" if single else None,
        )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(xlabel="epoch", ylabel="NLL change since start, nats")
    legend_above(axes)


def draw_optimizer(axes: Axes, runs: Sequence[Run]) -> None:
    """Gradient norm before clipping (left axis) and learning rate (right axis)."""
    _draw_column(axes, runs, "grad_norm", "gradient norm", PINK)
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    for index, run, _ in labelled(runs):
        frame = thin(run.metrics)
        colour = OCHRE if len(runs) == 1 else series_style(index)["color"]
        right.plot(frame["epoch"], frame["lr"], color=colour, linestyle=":", label="learning rate")
    right.set_ylabel("learning rate (dotted)")
    right.grid(False)
    right.spines["right"].set_visible(True)
    right.set_ylim(bottom=0)
    right.ticklabel_format(axis="y", scilimits=(-2, 3))


PANELS: dict[str, tuple[str, Callable[..., None]]] = {
    "nll": ("Training and validation loss", draw_nll),
    "curriculum": ("Curriculum: drop rate and threshold", draw_curriculum),
    "halves": ("Validation loss by entropy half", draw_halves),
    "kept": ("Share of tokens kept", draw_kept),
    "entropy": ("Entropy drift", draw_entropy),
    "optimizer": ("Gradient norm and learning rate", draw_optimizer),
}


def save_curves(runs: Sequence[Run], path: Path, title: str) -> None:
    """The picture people paste: loss on the left; curriculum, entropy halves and kept share beside it, as a PNG."""
    with house_style():
        figure = Figure(figsize=(12, 6.6), layout="constrained")
        grid = figure.add_gridspec(2, 3, width_ratios=(1.15, 1, 1))
        places = {
            "nll": grid[:, 0],
            "curriculum": grid[0, 1],
            "halves": grid[0, 2],
            "kept": grid[1, 1],
            "entropy": grid[1, 2],
        }
        for key, place in places.items():
            name, draw = PANELS[key]
            axes = figure.add_subplot(place)
            draw(axes, runs)
            axes.set_title(name, pad=24 if axes.get_legend() else 8)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        save_png(figure, path)
