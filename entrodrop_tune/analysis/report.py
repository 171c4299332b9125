"""A report of one run or several: the same numbers as JSON, self-contained web page, Markdown and PNG."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from entrodrop_tune.analysis import pages
from entrodrop_tune.analysis.before_after import GROUPS, before_and_after, draw_scores
from entrodrop_tune.analysis.curves import PANELS, save_curves, thin
from entrodrop_tune.analysis.runs import Run, config_difference, flatten, jsonable, run_names
from entrodrop_tune.analysis.style import svg
from entrodrop_tune.analysis.summary import epoch_means, summarize, verdict
from entrodrop_tune.analysis.warnings import find_problems
from entrodrop_tune.evaluation.results import EvalResults

CURVE_COLUMNS = [
    "step",
    "epoch",
    "loss",
    "nll_all",
    "kept_fraction",
    "entropy_mean",
    "threshold",
    "drop_rate",
]
CURVE_POINTS = 400


def build_report(
    runs: Sequence[Run], base: EvalResults | None = None, tuned: EvalResults | None = None
) -> dict[str, Any]:
    """Everything a report shows, as plain JSON values.

    Args:
        runs: the runs, one or more.
        base: evaluation of the untouched model; needs ``tuned`` too.
        tuned: evaluation of the fine-tuned model.
    """
    names = run_names(runs)
    entries = [_run_entry(run, name) for run, name in zip(runs, names, strict=True)]
    report: dict[str, Any] = {
        "schema": 1,
        "title": names[0] if len(runs) == 1 else f"{len(runs)} runs: {', '.join(names)}",
        "runs": entries,
        "config_difference": config_difference(runs) if len(runs) > 1 else {},
        "evaluation": None,
    }
    verdicts = [entry["verdict"] if len(runs) == 1 else f"{entry['name']}: {entry['verdict']}" for entry in entries]
    if base is not None and tuned is not None:
        report["evaluation"] = before_and_after(base, tuned)
        verdicts += report["evaluation"]["verdict"]
    report["verdict"] = verdicts
    return jsonable(report)


def _run_entry(run: Run, name: str) -> dict[str, Any]:
    summary = summarize(run)
    info = run.info
    return {
        "name": name,
        "path": str(run.path),
        "recipe": run.recipe,
        "exit": run.exit,
        "started": info.get("started"),
        "ended": info.get("ended"),
        "seconds": _seconds(info.get("started"), info.get("ended")),
        "verdict": verdict(name, summary),
        "summary": summary.as_dict(),
        "warnings": [finding.as_dict() for finding in find_problems(run)],
        "validation": run.validation.to_dict("records"),
        "epochs": [{"epoch": int(index), **row} for index, row in epoch_means(run.metrics).to_dict("index").items()],
        "training": thin(run.metrics[CURVE_COLUMNS], CURVE_POINTS).to_dict("list"),
        "config": flatten(run.config),
        **{key: info.get(key) for key in ("data", "parameters", "total_steps", "world_size", "versions", "machine")},
    }


def _seconds(started: str | None, ended: str | None) -> float | None:
    if not started or not ended:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()


def write_report(
    runs: Sequence[Run], output: Path, base: EvalResults | None = None, tuned: EvalResults | None = None
) -> dict[str, Any]:
    """Write ``report.json``, ``report.html``, ``report.md`` and ``curves.png`` into ``output``; return the report."""
    report = build_report(runs, base, tuned)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_curves(runs, output / "curves.png", title=report["title"])
    values = {"report": report, "groups": GROUPS}
    (output / "report.md").write_text(pages.render("report.md.j2", **values), encoding="utf-8")
    page = pages.render("report.html.j2", figures=_figures(runs, report), **values)
    (output / "report.html").write_text(page, encoding="utf-8")
    return report


def _figures(runs: Sequence[Run], report: dict[str, Any]) -> dict[str, Any]:
    verdicts = " ".join(entry["verdict"] for entry in report["runs"])
    panels = [
        {
            "key": key,
            "title": title,
            "caption": CAPTIONS[key],
            "svg": pages.trusted(
                svg(lambda axes, draw=draw: draw(axes, runs), key, f"{title}. {CAPTIONS[key]} {verdicts}")  # type: ignore[misc]
            ),
        }
        for key, (title, draw) in PANELS.items()
    ]
    scores = draw_scores(report["evaluation"]["scores"]) if report["evaluation"] else ""
    return {"panels": panels, "scores": pages.trusted(scores)}


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
