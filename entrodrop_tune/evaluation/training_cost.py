"""What a tuned model cost to make, from the run folder its checkpoint lies in."""

import json
import statistics
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainingCost:
    """One run's cost. ``None`` where the run did not record a value.

    Attributes:
        run: the run's folder.
        method: the adapter's type (``lora``, ``dora``) or ``full``.
        trainable, total: numbers of parameters.
        seconds: from start to end of the run, validation included.
        tokens_per_second: median over optimizer steps.
        peak_memory_bytes: the most any step held.
        checkpoint_bytes: size of the evaluated model's files, resume state excluded.
    """

    run: str
    method: str
    trainable: int | None
    total: int | None
    seconds: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    checkpoint_bytes: int


def training_cost(model_path: Path | str) -> TrainingCost | None:
    """The cost of the run ``model_path`` lies in; ``None`` if it lies in none (a base model, a moved checkpoint)."""
    model = Path(model_path).resolve()
    run = next((folder for folder in (model, *model.parents) if (folder / "run.json").is_file()), None)
    if run is None or not model.is_dir():
        return None
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    steps = _steps(run / "metrics.jsonl")
    adapter = (record.get("config") or {}).get("adapter") or {}
    parameters = record.get("parameters") or {}
    speeds = [step["tokens_per_second"] for step in steps if step.get("tokens_per_second")]
    return TrainingCost(
        run=str(run),
        method=str(adapter.get("type", "lora")) if adapter else "full",
        trainable=parameters.get("trainable"),
        total=parameters.get("total"),
        seconds=_duration(record),
        tokens_per_second=statistics.median(speeds) if speeds else None,
        peak_memory_bytes=max((step.get("peak_memory_bytes") or 0 for step in steps), default=0) or None,
        checkpoint_bytes=sum(file.stat().st_size for file in model.iterdir() if file.is_file()),
    )


def _duration(record: dict[str, Any]) -> float | None:
    if not record.get("started") or not record.get("ended"):
        return None
    return (datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])).total_seconds()


def _steps(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
