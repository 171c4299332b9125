"""Read what a training run left in its folder (``run.json``, ``metrics.jsonl``, ``validation.jsonl``)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from entrodrop_tune.errors import UserError
from entrodrop_tune.run_record import RECORD_FILE, read_jsonl, read_record

METRICS_COLUMNS = (
    "step", "epoch", "loss", "nll_all", "kept_fraction", "entropy_mean", "threshold", "drop_rate",
    "lr", "tokens", "tokens_per_second", "peak_memory_bytes", "grad_norm",
)  # fmt: skip
VALIDATION_COLUMNS = (
    "step", "epoch", "nll", "perplexity", "token_accuracy", "nll_low_entropy", "nll_high_entropy",
    "tokens", "seconds", "entropy_mean",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run.

    ``metrics`` has a row an optimizer step, ``validation`` a row a validation (the first is the untouched model at
    step 0); both are sorted by step, and columns a run did not log are NaN. NLLs and entropies are nats a token.
    """

    path: Path
    info: dict[str, Any]
    metrics: pd.DataFrame
    validation: pd.DataFrame

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> dict[str, Any]:
        return self.info.get("config") or {}

    @property
    def recipe(self) -> str:
        return str(self.info.get("recipe", "unknown recipe"))

    @property
    def exit(self) -> str:
        return str(self.info.get("exit", "unknown"))


def is_run_folder(path: Path | str) -> bool:
    """Whether ``path`` is what a training run wrote into."""
    return (Path(path) / RECORD_FILE).is_file()


def load_run(path: Path | str) -> Run:
    """Read a run's folder; an interrupted or still running one is fine.

    Raises:
        UserError: ``path`` is no run folder, or a file in it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"run folder {path} does not exist. Pass the output_dir of a `tune run`.")
    if not is_run_folder(path):
        raise UserError(f"{path} is no run folder: it has no run.json. Pass the output_dir of a `tune run`.")
    return Run(
        path=path.resolve(),
        info=read_record(path),
        metrics=_frame(read_jsonl(path / "metrics.jsonl"), METRICS_COLUMNS),
        validation=_frame(read_jsonl(path / "validation.jsonl"), VALIDATION_COLUMNS),
    )


def load_runs(paths: Iterable[Path | str]) -> list[Run]:
    """Read several runs, in order.

    Raises:
        UserError: one of them cannot be read (see :func:`load_run`), or is given twice.
    """
    runs = [load_run(path) for path in paths]
    seen: set[Path] = set()
    for run in runs:
        if run.path in seen:
            raise UserError(f"run folder {run.path} is given twice.")
        seen.add(run.path)
    return runs


def run_names(runs: Sequence[Run]) -> list[str]:
    """The folder names, with as many parent folders as it takes to tell the runs apart."""
    for depth in range(1, 6):
        names = ["/".join(run.path.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            break
    return names


def _frame(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=[*columns, *(c for c in frame.columns if c not in columns)])
    frame[list(columns)] = frame[list(columns)].apply(pd.to_numeric, errors="coerce").astype(float)
    # A run that resumed repeats the steps between its last checkpoint and the crash: the later line is the true one.
    return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def jsonable(value: Any) -> Any:
    """``value`` with NumPy scalars made plain and every non-finite number made ``None``, so that it is valid JSON."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value
    return value if isinstance(value, int | str | bool | None) else str(value)
