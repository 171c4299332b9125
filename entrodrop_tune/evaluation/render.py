"""Comparisons as Markdown, HTML and a picture of domain gain against retention."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrodrop_tune.evaluation.comparison import Comparison, Row
from entrodrop_tune.evaluation.groups import GroupSummary
from entrodrop_tune.evaluation.training_cost import TrainingCost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("group", "task", "metric", "n", "base", "tuned", "delta", "95 % interval", "p (Holm)", "finds", "verdict")
_UNITS = {"accuracy": "points", "likelihood": "% fewer bits/byte"}


def row_cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of the tables' columns; ``finds`` is the detectable effect."""
    arrow = "↑" if row.higher_is_better else "↓"
    return (
        row.group,
        row.task.removeprefix("entrodrop_"),
        f"{row.metric} {arrow}",
        str(row.n),
        f"{row.base:.3f}",
        f"{row.tuned:.3f}",
        f"{row.delta:+.3f}",
        f"{row.ci_low:+.3f} to {row.ci_high:+.3f}",
        f"{row.p:.3g} (–)" if row.p_holm is None else f"{row.p:.3g} ({row.p_holm:.3g})",
        f"±{row.detectable:.3f}",
        row.verdict,
    )


def group_sentence(group: GroupSummary) -> str:
    """One group's mean change, positive is better."""
    return (
        f"{group.group}, {group.kind} ({len(group.tasks)} task{'s' if len(group.tasks) > 1 else ''}): "
        f"{group.delta:+.1f} {_UNITS[group.kind]} ({group.ci_low:+.1f} to {group.ci_high:+.1f}); positive is better"
    )


def retention_sentence(comparison: Comparison) -> str:
    """The retention index in words."""
    retention = comparison.retention
    if retention is None:
        return "Retention index: no general task with a known chance level in both."
    if retention.index is None:
        return (
            f"Retention index: not defined, the base itself is within {100 * retention.base_above_chance:.1f} points "
            "of chance."
        )
    kept = retention.index
    return (
        f"Retention index (general accuracy above chance that is kept): {kept.value:.2f} "
        f"({kept.low:.2f} to {kept.high:.2f}) over {len(retention.tasks)} tasks"
    )


_COST_COLUMNS = ("model", "method", "trainable", "train time", "tokens/s", "peak memory", "checkpoint")
_GAIN_COLUMNS = ("domain", "general", "retention")


def cost_table(comparisons: Sequence[Comparison], domain: str = "math") -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and a row a tuned model: what training cost, and what it bought (changes as in ``group_sentence``)."""
    rows = [[c.tuned, *_cost_cells(c.cost), *_gain_cells(c, domain)] for c in comparisons]
    return (*_COST_COLUMNS, *_GAIN_COLUMNS), rows


def _cost_cells(cost: TrainingCost | None) -> list[str]:
    if cost is None:
        return ["–"] * (len(_COST_COLUMNS) - 1)
    return [
        cost.method,
        _share(cost.trainable, cost.total),
        _or_dash(cost.seconds, lambda seconds: f"{seconds / 60:.1f} min"),
        _or_dash(cost.tokens_per_second, lambda speed: f"{speed:.0f}"),
        _or_dash(cost.peak_memory_bytes, _mebibytes),
        _mebibytes(cost.checkpoint_bytes),
    ]


def _gain_cells(comparison: Comparison, domain: str) -> list[str]:
    changes: dict[str, list[str]] = {}
    for group in comparison.groups:
        unit = "pt" if group.kind == "accuracy" else "% fewer bits"
        changes.setdefault(group.group, []).append(f"{group.delta:+.1f} {unit}")
    index = comparison.retention.index if comparison.retention else None
    kept = f"{index.value:.2f} ({index.low:.2f} to {index.high:.2f})" if index else "–"
    return [", ".join(changes.get(domain, ["–"])), ", ".join(changes.get("general", ["–"])), kept]


def _or_dash(value: Any, text: Callable[[Any], str]) -> str:
    return "–" if value is None else text(value)


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _share(trainable: int | None, total: int | None) -> str:
    if trainable is None or not total:
        return "–"
    return f"{trainable:,} ({100 * trainable / total:.2g} %)"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars and tags in cells are escaped."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def comparison_markdown(comparison: Comparison, every_metric: bool = False) -> str:
    """A Markdown table of the primary metrics (or all), then groups, retention and warnings."""
    rows = comparison.rows if every_metric else comparison.primary_rows()
    lines = [
        f"**{comparison.tuned}** against **{comparison.base}**",
        "",
        markdown_table(_COLUMNS, [row_cells(row) for row in rows]),
        "",
        *(f"- {group_sentence(group)}" for group in comparison.groups),
        f"- {retention_sentence(comparison)}",
        *(f"- Warning: {warning}" for warning in comparison.warnings),
    ]
    return "\n".join(lines) + "\n"


def comparison_html(comparisons: Sequence[Comparison], domain: str = "math") -> str:
    """A self-contained page: a table for each comparison and the trade-off plot."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("entrodrop_tune.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    picture = base64.b64encode(figure_bytes(tradeoff_figure(comparisons, domain), "png")).decode()
    return environment.get_template("comparison.html.j2").render(
        comparisons=comparisons,
        cost_table=cost_table(comparisons, domain),
        columns=_COLUMNS,
        row_cells=row_cells,
        group_sentence=group_sentence,
        retention_sentence=retention_sentence,
        picture=picture,
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points no other point beats in both coordinates (larger is better), by first coordinate."""

    def beaten(i: int) -> bool:
        x, y = points[i]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)

    return sorted((i for i in range(len(points)) if not beaten(i)), key=lambda i: points[i])


def tradeoff_figure(comparisons: Sequence[Comparison], domain: str = "math") -> "Figure":
    """Change in general ability (x) against change in the domain (y), a point a tuned model; positive is better.

    One panel for accuracies and one for likelihoods, where both groups have such tasks; whiskers are 95 % intervals.
    """
    from matplotlib.figure import Figure

    panels = [kind for kind in _UNITS if any(_point(c, domain, kind) for c in comparisons)]
    figure = Figure(figsize=(5.2 * max(1, len(panels)), 4.2), layout="constrained")
    for number, kind in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        _draw_panel(axes, [(c.tuned, _point(c, domain, kind)) for c in comparisons])
        axes.set_xlabel(f"general {kind}, {_UNITS[kind]} (right: kept)")
        axes.set_ylabel(f"{domain} {kind}, {_UNITS[kind]} (up: learned)")
    return figure


def _point(comparison: Comparison, domain: str, kind: str) -> tuple[GroupSummary, GroupSummary] | None:
    found = {group.group: group for group in comparison.groups if group.kind == kind}
    return (found["general"], found[domain]) if "general" in found and domain in found else None


def _draw_panel(axes: Any, named: Sequence[tuple[str, tuple[GroupSummary, GroupSummary] | None]]) -> None:
    points = [(name, *point) for name, point in named if point is not None]
    for name, general, gain in points:
        axes.errorbar(
            general.delta,
            gain.delta,
            xerr=[[general.delta - general.ci_low], [general.ci_high - general.delta]],
            yerr=[[gain.delta - gain.ci_low], [gain.ci_high - gain.delta]],
            fmt="o",
            capsize=3,
        )
        axes.annotate(
            "/".join(Path(name).parts[-2:]),
            (general.delta, gain.delta),
            textcoords="offset points",
            xytext=(6, 6),
            parse_math=False,
        )
    coordinates = [(general.delta, gain.delta) for _, general, gain in points]
    front = [coordinates[i] for i in pareto_front(coordinates)]
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), "--", color="0.5", linewidth=1, zorder=0)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)


def figure_bytes(figure: "Figure", kind: str) -> bytes:
    """A figure as ``png`` or ``svg`` bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130)
    return buffer.getvalue()
