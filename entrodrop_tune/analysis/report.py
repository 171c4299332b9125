"""A report of one run or several: the same numbers as JSON, self-contained web page, Markdown and PNG."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entrodrop_tune.analysis import pages
from entrodrop_tune.analysis.before_after import GROUPS, before_and_after
from entrodrop_tune.analysis.compare_runs import METRICS, compare_runs
from entrodrop_tune.analysis.curves import save_curves, thin
from entrodrop_tune.analysis.report_figures import report_figures
from entrodrop_tune.analysis.run_groups import config_difference
from entrodrop_tune.analysis.runs import Run, flatten, jsonable, run_names
from entrodrop_tune.analysis.summary import epoch_means, summarize, verdict
from entrodrop_tune.analysis.warnings import find_problems
from entrodrop_tune.evaluation.results import EvalResults
from entrodrop_tune.files import write_atomically
from entrodrop_tune.run_record import wall_seconds

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
NAMED_RUNS = 4  # up to so many runs each get a sentence of their own


def build_report(
    runs: Sequence[Run],
    base: EvalResults | None = None,
    tuned: EvalResults | None = None,
    profile: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything a report shows, as plain JSON values.

    Args:
        runs: the runs, one or more.
        base: evaluation of the untouched model; needs ``tuned`` too.
        tuned: evaluation of the fine-tuned model.
        profile: ``entropy.json`` of ``entrodrop entropy``, for the gradient's share by entropy.
    """
    names = run_names(runs)
    entries = [_run_entry(run, name) for run, name in zip(runs, names, strict=True)]
    report: dict[str, Any] = {
        "schema": 1,
        "title": _title(names),
        "warnings": _warnings(entries),
        "runs": entries,
        "config_difference": config_difference(runs) if len(runs) > 1 else {},
        "comparison": None,
        "evaluation": None,
        "entropy": profile,
    }
    verdicts = []
    if len(runs) > 1:
        comparison = compare_runs(runs)
        report["comparison"] = comparison.as_dict()
        verdicts += comparison.verdicts
    if len(runs) <= NAMED_RUNS:
        verdicts += [
            entry["verdict"] if len(runs) == 1 else f"{entry['name']}: {entry['verdict']}" for entry in entries
        ]
    if base is not None and tuned is not None:
        report["evaluation"] = before_and_after(base, tuned)
        verdicts += report["evaluation"]["verdict"]
    if profile is not None:
        verdicts += profile["verdict"]
    report["verdict"] = verdicts
    return jsonable(report)


def _title(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{len(names)} runs" + (f": {', '.join(names)}" if len(names) <= NAMED_RUNS else "")


def _warnings(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs' warnings by kind, problems first: what it is, and in which run it says what."""
    kinds: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for item in entry["warnings"]:
            kind = kinds.setdefault(item["code"], {**item, "runs": []})
            kind["runs"].append({"name": entry["name"], "detail": item["detail"]})
            if item["severity"] == "problem":
                kind["severity"] = "problem"
    return sorted(kinds.values(), key=lambda kind: kind["severity"] != "problem")


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
        # A resumed run's start is that of its last part.
        "seconds": None if info.get("resumed_from") else wall_seconds(info),
        "verdict": verdict(name, summary),
        "summary": summary.as_dict(),
        "warnings": [finding.as_dict() for finding in find_problems(run)],
        "validation": run.validation.to_dict("records"),
        "epochs": [{"epoch": int(index), **row} for index, row in epoch_means(run.metrics).to_dict("index").items()],
        "training": thin(run.metrics[CURVE_COLUMNS], CURVE_POINTS).to_dict("list"),
        "config": flatten(run.config),
        **{key: info.get(key) for key in ("data", "parameters", "total_steps", "world_size", "versions", "machine")},
    }


def write_report(
    runs: Sequence[Run],
    output: Path,
    base: EvalResults | None = None,
    tuned: EvalResults | None = None,
    profile: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``report.json``, ``report.html``, ``report.md`` and ``curves.png`` into ``output``; return the report."""
    report = build_report(runs, base, tuned, profile)
    values = {"report": report, "groups": GROUPS, "metrics": METRICS}
    texts = {
        "report.json": json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        "report.md": pages.render("report.md.j2", **values),
        "report.html": pages.render("report.html.j2", figures=report_figures(runs, report), **values),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(output / name, text)
    save_curves(runs, output / "curves.png", title=report["title"])
    return report
