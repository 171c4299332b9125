"""What a tuned model cost to make, from the run folder its checkpoint lies in."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrodrop_tune.run_record import RECORD_FILE, read_jsonl, read_record, wall_seconds


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
    run = next((folder for folder in (model, *model.parents) if (folder / RECORD_FILE).is_file()), None)
    if run is None or not model.is_dir():
        return None
    record, steps = read_record(run), read_jsonl(run / "metrics.jsonl")
    adapter = (record.get("config") or {}).get("adapter") or {}
    parameters = record.get("parameters") or {}
    speeds = _numbers(steps, "tokens_per_second")
    return TrainingCost(
        run=str(run),
        method=str(adapter.get("type", "lora")) if adapter else "full",
        trainable=parameters.get("trainable"),
        total=parameters.get("total"),
        seconds=wall_seconds(record),
        tokens_per_second=statistics.median(speeds) if speeds else None,
        peak_memory_bytes=int(max(_numbers(steps, "peak_memory_bytes"), default=0)) or None,
        checkpoint_bytes=sum(file.stat().st_size for file in model.iterdir() if file.is_file()),
    )


def _numbers(steps: list[dict[str, Any]], key: str) -> list[float]:
    values = (step.get(key) for step in steps)
    return [value for value in values if isinstance(value, int | float) and math.isfinite(value) and value > 0]
