"""Pictures of an entropy profile: distribution, token classes, gradient share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from entrodrop_tune.analysis.style import BLUE, INK, MUTED, ORANGE, TEAL, VIOLET, legend_above, series_style


def draw_histogram(axes: Axes, domains: Sequence[dict[str, Any]]) -> None:
    """Share of tokens by entropy; a thin upright line marks each domain's threshold."""
    for index, domain in enumerate(domains):
        counts = np.asarray(domain["histogram"]["counts"], dtype=float)
        edges = domain["histogram"]["edges"]
        colour = series_style(index)["color"]
        axes.stairs(counts / counts.sum(), edges, color=colour, linewidth=1.6, label=domain["name"])
        axes.stairs(counts / counts.sum(), edges, color=colour, fill=True, alpha=0.12)
        axes.axvline(domain["setting"]["threshold_nats"], color=colour, linewidth=1, linestyle="--")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(xlabel="entropy, nats (dashed: threshold)", ylabel="share of tokens")
    legend_above(axes)


def draw_cdf(axes: Axes, domains: Sequence[dict[str, Any]]) -> None:
    """Share of tokens below an entropy; a dot marks the threshold."""
    for index, domain in enumerate(domains):
        style = series_style(index)
        levels, values = zip(*((float(k), v) for k, v in domain["quantiles"].items()), strict=True)
        axes.plot(np.maximum(values, 1e-4), levels, **style, label=domain["name"])
        setting = domain["setting"]
        axes.plot(max(setting["threshold_nats"], 1e-4), setting["quantile"], "o", color=style["color"], markersize=7)
    axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="entropy, nats (dot: threshold)", ylabel="share of tokens below", ylim=(-0.02, 1.02))
    legend_above(axes)


def draw_classes(axes: Axes, domains: Sequence[dict[str, Any]]) -> None:
    """Median entropy of each token class, with its middle half."""
    names = list(dict.fromkeys(row["token_class"] for domain in domains for row in domain["classes"]))
    step = 0.7 / len(domains)
    for index, domain in enumerate(domains):
        colour = series_style(index)["color"]
        for row in domain["classes"]:
            y = len(names) - 1 - names.index(row["token_class"]) + (len(domains) - 1) * step / 2 - index * step
            axes.plot([row["entropy_q25"], row["entropy_q75"]], [y, y], color=colour, linewidth=4, alpha=0.35)
            axes.plot(row["entropy_median"], y, "o", color=colour, markersize=6)
        axes.plot([], [], "o", color=colour, label=domain["name"])
        axes.axvline(domain["setting"]["threshold_nats"], color=colour, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set(xlabel="entropy, nats: median and middle half (dashed: threshold)")
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    legend_above(axes)


def draw_gradient_share(axes: Axes, result: dict[str, Any], scope: str) -> None:
    """Bars an entropy range: its share of tokens, of NLL, and of the gradient before and after masking."""
    ranges, shares = result["ranges"], result["scopes"][scope]
    bars = {
        "tokens": ([part["token_share"] for part in ranges], MUTED),
        "NLL": ([part["nll_share"] for part in ranges], TEAL),
        "gradient": (shares["before"], BLUE),
        "gradient after masking": (shares["after"] or [0.0] * len(ranges), ORANGE),
    }
    height = 0.8 / len(bars)
    places = np.arange(len(ranges))[::-1]
    for index, (name, (values, colour)) in enumerate(bars.items()):
        axes.barh(places + (1.5 - index) * height, values, height * 0.9, color=colour, label=name)
    axes.axvline(0, color=INK, linewidth=0.8)
    below = sum(part["keep_probability"] < 1 for part in ranges)
    if 0 < below < len(ranges):
        axes.axhline(len(ranges) - below - 0.5, color=VIOLET, linewidth=1, linestyle="--")
    axes.set_yticks(places, [range_label(part) for part in ranges])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="share (tokens above the dashed line may be dropped)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    legend_above(axes)


def range_label(part: dict[str, Any]) -> str:
    """``0.05 – 0.31`` nats."""
    return f"{part['low']:.3g} – {'∞' if part['high'] is None else format(part['high'], '.3g')}"


def draw_over_training(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    """Below the untouched model's threshold, checkpoint by checkpoint: share of tokens, of NLL, of the gradient."""
    epochs = [point["epoch"] for point in points]
    for key, label, colour, marker in (
        ("token_share_below", "tokens", MUTED, "s"),
        ("nll_share_below", "NLL", TEAL, "^"),
        ("gradient_share_below", "gradient (output layer)", BLUE, "o"),
    ):
        axes.plot(epochs, [point[key] for point in points], marker=marker, markersize=5, color=colour, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="epoch", ylabel="share below the first threshold", ylim=(-0.03, 1.03))
    legend_above(axes)
