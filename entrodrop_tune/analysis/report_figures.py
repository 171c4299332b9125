"""The figures of a report's page, as inline SVG with what each shows in words."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from entrodrop_tune.analysis import pages
from entrodrop_tune.analysis.before_after import draw_scores
from entrodrop_tune.analysis.compare_output import draw_differences, draw_group_curves
from entrodrop_tune.analysis.compare_runs import METRICS, compare_runs
from entrodrop_tune.analysis.curves import PANELS
from entrodrop_tune.analysis.entropy_page import gradient_figures, training_figures
from entrodrop_tune.analysis.runs import Run
from entrodrop_tune.analysis.style import svg

CAPTIONS = {
    "nll": (
        "Training NLL counts every target token, dropped or not; a ring marks the best validation. Of several runs, "
        "thin lines are training and lines with dots validation."
    ),
    "curriculum": "The probability that a token below the threshold is dropped, and where that threshold lay.",
    "halves": (
        "Fixed validation tokens, split at the untouched model's median entropy. Below zero is better "
        "than the untouched model; a rising low-entropy half would mean lost grammar."
    ),
    "kept": "The share of target tokens that gave loss and gradient.",
    "entropy": "How sure the model is of its next token; falling towards zero means it is memorising.",
    "optimizer": "The norm before clipping; a spike is a batch that the model could not make sense of.",
}


def report_figures(runs: Sequence[Run], report: dict[str, Any]) -> dict[str, Any]:
    """Lists of figures (title, caption, svg) for the sections of ``report.html.j2``."""
    scores = draw_scores(report["evaluation"]["scores"]) if report["evaluation"] else ""
    profile = report["entropy"]
    return {
        "panels": _panels(runs, report),
        "comparison": _comparison(runs, report),
        "gradient": [*gradient_figures(profile), *training_figures(profile)] if profile else [],
        "scores": pages.trusted(scores),
    }


def _panels(runs: Sequence[Run], report: dict[str, Any]) -> list[dict[str, Any]]:
    verdicts = " ".join(entry["verdict"] for entry in report["runs"])
    return [
        pages.figure(title, CAPTIONS[key], svg(partial(draw, runs=runs), key, f"{title}. {CAPTIONS[key]} {verdicts}"))
        for key, (title, draw) in PANELS.items()
    ]


def _comparison(runs: Sequence[Run], report: dict[str, Any]) -> list[dict[str, Any]]:
    if report["comparison"] is None:
        return []
    comparison = compare_runs(runs)
    said = " ".join(comparison.verdicts)
    curves = svg(partial(draw_group_curves, comparison=comparison, runs=runs), "groups", f"Validation curves. {said}")
    figures = [pages.figure("Validation NLL", "Mean over seeds with its 95% band; single runs thin.", curves)]
    if any(difference.value is not None for difference in comparison.differences):
        drawn = svg(partial(draw_differences, comparison=comparison), "differences", f"Differences. {said}")
        words = METRICS[comparison.metric][0]
        caption = f"Minus {comparison.differences[0].baseline}, with 95% intervals over seeds where there are any."
        figures.append(pages.figure(f"Difference in {words}", caption, drawn))
    return figures
