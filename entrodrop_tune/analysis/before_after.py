"""What fine-tuning did to the evaluation scores, ready to be shown: paired differences, and answers that changed."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from entrodrop_tune.analysis.style import BLUE, MUTED, ORANGE, house_style, inline_svg
from entrodrop_tune.evaluation.comparison import Comparison, Row, compare_evaluations
from entrodrop_tune.evaluation.results import EvalResults, MetricSummary

GROUPS = {
    "math": "Mathematics",
    "code": "Code",
    "medical": "Medicine",
    "general": "General ability (retention)",
}
SAMPLES = 6
NAMED = 3  # scores named in the verdict, per direction


def before_and_after(base: EvalResults, tuned: EvalResults) -> dict[str, Any]:
    """The evaluation part of a report, as plain values.

    Raises:
        UserError: the two evaluations have no task or item in common.
    """
    comparison = compare_evaluations(base, tuned)
    rows = [_score_row(row, base, tuned) for row in comparison.rows]
    order = list(GROUPS)
    rows.sort(key=lambda row: order.index(row["group"]) if row["group"] in order else len(order))
    return {
        "verdict": score_verdict(comparison),
        "scores": rows,
        "retention": asdict(comparison.retention) if comparison.retention else None,
        "warnings": list(comparison.warnings),
        "answers": changed_answers(base, tuned),
        "base": _identity(base),
        "tuned": _identity(tuned),
    }


def _identity(results: EvalResults) -> dict[str, Any]:
    return {key: value for key, value in results.to_dict().items() if key != "tasks"}


def _score_row(row: Row, base: EvalResults, tuned: EvalResults) -> dict[str, Any]:
    before, after = (results.tasks[row.task].metrics[row.metric] for results in (base, tuned))
    return {
        "group": row.group,
        "task": row.task,
        "metric": row.metric,
        "primary": row.primary,
        "higher_is_better": row.higher_is_better,
        "chance": before.chance,
        "base": _score(before),
        "tuned": _score(after),
        "difference": {
            "value": row.delta,
            "ci_low": row.ci_low,
            "ci_high": row.ci_high,
            "p": row.p,
            "p_holm": row.p_holm,
            "test": row.test,
            "n": row.n,
            "detectable": row.detectable,
        },
        "effect": row.verdict,
    }


def _score(metric: MetricSummary) -> dict[str, Any]:
    return {"value": metric.value, "ci_low": metric.ci_low, "ci_high": metric.ci_high, "n": metric.n}


def score_verdict(comparison: Comparison) -> list[str]:
    """Sentences: which primary scores moved for sure, which way, how many could not be told; what was retained."""
    rows = comparison.primary_rows()
    moved = {kind: [row for row in rows if row.verdict == kind] for kind in ("better", "worse")}
    parts = [f"{kind} on {_named(found)}" for kind, found in moved.items() if found]
    unclear = len(rows) - sum(map(len, moved.values()))
    if parts:
        sentence = "After tuning the model is " + " and ".join(parts)
        sentence += f"; on {unclear} of {len(rows)} tasks no difference can be shown." if unclear else "."
    else:
        tasks = "the one task" if len(rows) == 1 else f"any of the {len(rows)} tasks"
        sentence = f"After tuning, no difference can be shown on {tasks}."
    return [sentence, *_retained(comparison)]


def _named(rows: Sequence[Row]) -> str:
    largest = sorted(rows, key=lambda row: row.p)[:NAMED]
    names = [
        f"{_short(row.task)} {row.metric} ({row.base:.3f} to {row.tuned:.3f}, 95% interval of the difference "
        f"{row.ci_low:+.3f} to {row.ci_high:+.3f})"
        for row in largest
    ]
    rest = len(rows) - len(largest)
    return ", ".join(names) + (f" and {rest} more" if rest else "")


def _short(task: str) -> str:
    return task.removeprefix("entrodrop_")


def _retained(comparison: Comparison) -> list[str]:
    retention = comparison.retention
    if retention is None:
        return []
    if retention.index is None:
        return ["Retention cannot be said: the base model is at chance on the general tasks."]
    index = retention.index
    return [
        f"Of its general ability above chance it kept {index.value:.0%} (95% interval {index.low:.0%} to "
        f"{index.high:.0%}, over {len(retention.tasks)} tasks)."
    ]


def draw_scores(rows: Sequence[dict[str, Any]]) -> str:
    """Base and tuned score of every primary metric with intervals, as inline SVG.

    Only scores between 0 and 1 fit one axis; the others (a perplexity, say) stand in the table alone.
    """
    shown = [row for row in rows if row["primary"] and _is_share(row["base"]) and _is_share(row["tuned"])]
    if not shown:
        return ""
    with house_style():
        figure = Figure(figsize=(4.6, 0.75 + 0.5 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        for index, row in enumerate(shown):
            y = len(shown) - 1 - index
            for side, colour, offset, marker in (("base", BLUE, 0.13, "o"), ("tuned", ORANGE, -0.13, "D")):
                score, label = row[side], side if index == 0 else None
                interval = [score["ci_low"], score["ci_high"]]
                axes.plot(interval, [y + offset] * 2, color=colour, linewidth=2, alpha=0.55)
                axes.plot(score["value"], y + offset, marker, color=colour, markersize=6, label=label)
            if row["chance"] is not None:
                axes.plot([row["chance"]] * 2, [y - 0.32, y + 0.32], color=MUTED, linestyle=":", linewidth=1.5)
        if any(row["chance"] is not None for row in shown):
            axes.plot([], [], color=MUTED, linestyle=":", linewidth=1.5, label="chance")
        names = [f"{_short(row['task'])}\n{row['metric']}" for row in reversed(shown)]
        axes.set_yticks(range(len(shown)), names, fontsize=8.5)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper right", ncols=3)
        numbers = "; ".join(
            f"{_short(row['task'])} {row['base']['value']:.3f} before, {row['tuned']['value']:.3f} after"
            for row in shown
        )
        return inline_svg(figure, "scores", f"Scores with 95% intervals. {numbers}.")


def _is_share(score: dict[str, Any]) -> bool:
    return math.isfinite(score["value"]) and 0 <= score["value"] <= 1


def changed_answers(base: EvalResults, tuned: EvalResults, count: int = SAMPLES) -> dict[str, Any]:
    """Generated answers before and after: counts over all items, and up to ``count`` examples.

    Examples take turns between fixed, broken and unchanged items, in the order of the task, so that they are not
    picked to please. Items are scored by their task's primary metric.
    """
    kinds: dict[str, list[dict[str, Any]]] = {"fixed": [], "broken": [], "unchanged": []}
    for task, summary in base.tasks.items():
        if task not in tuned.tasks:
            continue
        metric = summary.primary
        sign = 1 if summary.metrics[metric].higher_is_better else -1
        after_by_hash = {item.doc_hash: item for item in tuned.items_of(task)}
        for before in base.items_of(task):
            after = after_by_hash.get(before.doc_hash)
            if after is None or before.prediction is None or after.prediction is None:
                continue
            change = sign * (after.metrics[metric] - before.metrics[metric])
            kinds["fixed" if change > 0 else "broken" if change < 0 else "unchanged"].append(
                {
                    "task": task,
                    "doc_id": before.doc_id,
                    "metric": metric,
                    "target": before.target,
                    "before": before.prediction,
                    "after": after.prediction,
                    "score_before": before.metrics[metric],
                    "score_after": after.metrics[metric],
                }
            )
    examples: list[dict[str, Any]] = []
    for turn in range(count):
        for kind, items in kinds.items():
            if turn < len(items) and len(examples) < count:
                examples.append({"kind": kind, **items[turn]})
    return {"counts": {kind: len(items) for kind, items in kinds.items()}, "examples": examples}
