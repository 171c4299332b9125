"""One JSON file a run: what the tables are rebuilt from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from entrodrop_tune.analysis.runs import Run, jsonable

METRICS = ["step", "epoch", "loss", "nll_all", "kept_fraction", "entropy_mean", "threshold", "drop_rate", "tokens"]
METRICS += ["tokens_per_second", "peak_memory_bytes"]


@dataclass(frozen=True)
class Stored:
    """A finished run, its arm, and the NLL of its best and last checkpoint on general text (nats a token, by set)."""

    arm: str
    seed: int
    run: Run
    general: dict[str, dict[str, float]]


def save(path: Path, arm: str, run: Run, general: dict[str, dict[str, float]]) -> None:
    """Write what the tables need of ``run``; numbers of the journal to six significant digits."""
    journal = run.metrics[METRICS].map(lambda value: float(f"{value:.6g}"))
    content: dict[str, Any] = {
        "arm": arm,
        "seed": run.config["seed"],
        "info": run.info,
        "validation": run.validation.to_dict("list"),
        "metrics": journal.to_dict("list"),
        "general": general,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(jsonable(value))}" for key, value in content.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def load(path: Path) -> Stored:
    """Read what :func:`save` wrote."""
    content = json.loads(path.read_text())
    frames = {name: pd.DataFrame(content[name]).astype(float) for name in ("metrics", "validation")}
    for name in ("lr", "grad_norm"):  # columns every run has and no table asks for
        frames["metrics"][name] = float("nan")
    run = Run(Path(path.stem), content["info"], frames["metrics"], frames["validation"])
    return Stored(content["arm"], content["seed"], run, content["general"])
