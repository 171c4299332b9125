"""What fine-tuning did to the evaluation scores: paired differences, and answers that changed."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.ticker
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from entrodrop_tune.analysis.runs import read_jsonl
from entrodrop_tune.analysis.style import BLUE, MUTED, ORANGE, house_style, inline_svg
from entrodrop_tune.errors import UserError

GROUPS = {"math": "Mathematics", "code": "Code", "general": "General ability (retention)"}
SAMPLES = 6


@dataclass(frozen=True)
class Evaluation:
    path: Path
    info: dict[str, Any]
    items: list[dict[str, Any]]


def load_evaluation(path: Path | str) -> Evaluation:
    """Read an evaluation's folder (``eval.json``, ``items.jsonl``).

    Raises:
        UserError: ``path`` holds no evaluation.
    """
    path = Path(path)
    if not (path / "eval.json").is_file():
        raise UserError(f"{path} is no evaluation folder: it has no eval.json. Make one with `entrodrop eval`.")
    try:
        info = json.loads((path / "eval.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path / 'eval.json'} is not valid JSON ({error}).") from None
    return Evaluation(path.resolve(), info, read_jsonl(path / "items.jsonl"))


def score_table(base: Evaluation, tuned: Evaluation) -> list[dict[str, Any]]:
    """A row a task and metric that both evaluations hold, with a paired 95% interval of tuned minus base.

    Raises:
        UserError: the two have no task in common.
    """
    rows = []
    for task, before in base.info["tasks"].items():
        after = tuned.info["tasks"].get(task)
        for metric, value in before["metrics"].items():
            if after is None or metric not in after["metrics"]:
                continue
            rows.append(
                {
                    "group": before.get("group", "general"),
                    "task": task,
                    "metric": metric,
                    "higher_is_better": bool(value.get("higher_is_better", True)),
                    "chance": value.get("chance"),
                    "base": {key: value.get(key) for key in ("value", "ci_low", "ci_high", "n")},
                    "tuned": {key: after["metrics"][metric].get(key) for key in ("value", "ci_low", "ci_high", "n")},
                    "difference": paired_difference(base, tuned, task, metric),
                }
            )
    if not rows:
        raise UserError(f"{base.path} and {tuned.path} have no task in common: evaluate both with the same --suite.")
    order = list(GROUPS)
    return sorted(rows, key=lambda row: order.index(row["group"]) if row["group"] in order else len(order))


def paired_difference(base: Evaluation, tuned: Evaluation, task: str, metric: str) -> dict[str, Any] | None:
    """Tuned minus base over the items both answered, with a paired t interval; None with under two such items."""
    pairs = [
        (before["metrics"][metric], after["metrics"][metric])
        for before, after in _matched(base, tuned, task)
        if before["metrics"].get(metric) is not None and after["metrics"].get(metric) is not None
    ]
    if len(pairs) < 2:
        return None
    before, after = (list(side) for side in zip(*pairs, strict=True))
    difference = pd.Series(after, dtype=float) - pd.Series(before, dtype=float)
    if difference.nunique() == 1:
        return {
            "value": float(difference.iloc[0]),
            "ci_low": None,
            "ci_high": None,
            "p": None,
            "n": len(pairs),
        }
    test = stats.ttest_rel(after, before)
    low, high = test.confidence_interval(0.95)
    return {
        "value": float(difference.mean()),
        "ci_low": float(low),
        "ci_high": float(high),
        "p": float(test.pvalue),
        "n": len(pairs),
    }


def _matched(base: Evaluation, tuned: Evaluation, task: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    after = {str(item["doc_id"]): item for item in tuned.items if item["task"] == task}
    return [
        (item, after[str(item["doc_id"])])
        for item in base.items
        if item["task"] == task and str(item["doc_id"]) in after
    ]


def effect(row: dict[str, Any]) -> str:
    """``better`` or ``worse`` where the paired interval excludes zero, else ``unclear``."""
    difference = row["difference"]
    if difference is None or difference["ci_low"] is None:
        return "unclear"
    sign = 1 if row["higher_is_better"] else -1
    low, high = sorted((sign * difference["ci_low"], sign * difference["ci_high"]))
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def score_verdict(rows: Sequence[dict[str, Any]]) -> str:
    """One sentence: which scores moved for sure, which way, and how many could not be told."""
    moved = {kind: [row for row in rows if effect(row) == kind] for kind in ("better", "worse", "unclear")}
    parts = [
        f"{kind} on " + ", ".join(f"{row['task']} {row['metric']} ({_difference(row)})" for row in moved[kind])
        for kind in ("better", "worse")
        if moved[kind]
    ]
    unclear = len(moved["unclear"])
    if not parts:
        return f"After tuning, none of the {len(rows)} scores moved by more than chance would explain."
    sentence = "After tuning the model is " + " and ".join(parts)
    return sentence + (f"; on {unclear} of {len(rows)} scores no difference can be shown." if unclear else ".")


def _difference(row: dict[str, Any]) -> str:
    d = row["difference"]
    return f"{d['value']:+.3f}, 95% interval {d['ci_low']:+.3f} to {d['ci_high']:+.3f}"


def draw_scores(rows: Sequence[dict[str, Any]]) -> str:
    """Base and tuned score of every row with their intervals, as inline SVG.

    Only scores between 0 and 1 fit one axis; the others (a perplexity, say) stand in the table alone.
    """
    shown = [row for row in rows if _is_share(row["base"]) and _is_share(row["tuned"])]
    if not shown:
        return ""
    with house_style():
        figure = Figure(figsize=(4.6, 0.75 + 0.56 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        for index, row in enumerate(shown):
            y = len(shown) - 1 - index
            for side, colour, offset in (("base", BLUE, 0.13), ("tuned", ORANGE, -0.13)):
                score = row[side]
                if score["ci_low"] is not None and score["ci_high"] is not None:
                    axes.plot(
                        [score["ci_low"], score["ci_high"]],
                        [y + offset] * 2,
                        color=colour,
                        linewidth=2,
                        alpha=0.55,
                    )
                axes.plot(score["value"], y + offset, "o" if side == "base" else "D", color=colour, markersize=6,
                          label=side if index == 0 else None)  # fmt: skip
            if row["chance"] is not None:
                axes.plot([row["chance"]] * 2, [y - 0.32, y + 0.32], color=MUTED, linestyle=":", linewidth=1.5,
                          label="chance" if index == 0 else None)  # fmt: skip
        axes.set_yticks(range(len(shown)), [f"{row['task']}\n{row['metric']}" for row in reversed(shown)], fontsize=8.5)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper right", ncols=3)
        alt = "; ".join(
            f"{row['task']} {row['metric']}: {row['base']['value']:.3f} before, {row['tuned']['value']:.3f} after"
            for row in shown
        )
        return inline_svg(figure, "scores", f"Scores with 95% intervals. {alt}.")


def _is_share(score: dict[str, Any]) -> bool:
    return score["value"] is not None and math.isfinite(score["value"]) and 0 <= score["value"] <= 1


def changed_answers(base: Evaluation, tuned: Evaluation, count: int = SAMPLES) -> dict[str, Any]:
    """Generated answers before and after: counts over all items, and up to ``count`` examples.

    Examples take turns between fixed, broken and unchanged items, in the order of the task, so that they are not
    picked to please. The score compared is an item's first metric.
    """
    kinds: dict[str, list[dict[str, Any]]] = {"fixed": [], "broken": [], "unchanged": []}
    for task, entry in base.info["tasks"].items():
        metric = next(iter(entry["metrics"]), None)
        better = entry["metrics"][metric].get("higher_is_better", True) if metric else True
        for before, after in _matched(base, tuned, task):
            if before.get("prediction") is None or after.get("prediction") is None:
                continue
            scores = before["metrics"].get(metric), after["metrics"].get(metric)
            if None in scores:
                continue
            change = (scores[1] - scores[0]) * (1 if better else -1)
            kinds["fixed" if change > 0 else "broken" if change < 0 else "unchanged"].append(
                {
                    "task": task,
                    "doc_id": before["doc_id"],
                    "metric": metric,
                    "target": before.get("target"),
                    "before": before["prediction"],
                    "after": after["prediction"],
                    "score_before": scores[0],
                    "score_after": scores[1],
                }
            )
    examples: list[dict[str, Any]] = []
    for turn in range(count):
        for kind, items in kinds.items():
            if turn < len(items) and len(examples) < count:
                examples.append({"kind": kind, **items[turn]})
    return {"counts": {kind: len(items) for kind, items in kinds.items()}, "examples": examples}
