"""``eval.json`` and ``items.jsonl``: their schema, writing them atomically, and reading them back."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from entrodrop_tune.errors import UserError, first_problem
from entrodrop_tune.files import write_atomically

EVAL_FILE, ITEMS_FILE = "eval.json", "items.jsonl"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class MetricSummary(_Record):
    """A metric over a task's items, with its 95 % interval; ``chance``: what guessing scores, if known."""

    value: FiniteFloat
    ci_low: FiniteFloat
    ci_high: FiniteFloat
    n: int
    higher_is_better: bool
    chance: FiniteFloat | None = None


class TaskSummary(_Record):
    """One task's result. ``data``: source and hash of the rows; ``primary``: the metric to read first."""

    group: str
    version: str
    n: int
    num_fewshot: int
    chat_template: bool
    primary: str
    data: dict[str, Any]
    seconds: float
    metrics: dict[str, MetricSummary]


class ModelRecord(_Record):
    """What was evaluated: paths as given, content hash, number of parameters."""

    path: str
    base: str
    adapter: str | None
    hash: str
    parameters: int | None


class Item(_Record):
    """One item's scores. ``weights`` holds the denominators of ratio metrics (bytes for ``bits_per_byte``)."""

    task: str
    doc_id: int
    doc_hash: str
    metrics: dict[str, FiniteFloat]
    weights: dict[str, FiniteFloat] = Field(default_factory=dict)
    cluster: str | None = None
    prediction: str | None = None
    target: str | None = None


class EvalResults(_Record):
    """An evaluation: everything in ``eval.json``, and the items of ``items.jsonl``."""

    schema_: Literal[1] = Field(1, alias="schema")
    model: ModelRecord
    suite: str
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    started: str
    seconds: float
    skipped: dict[str, str] = Field(default_factory=dict)
    tasks: dict[str, TaskSummary]
    items: list[Item] = Field(default_factory=list, exclude=True)

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    def to_dict(self) -> dict[str, Any]:
        """What ``eval.json`` holds."""
        return self.model_dump(by_alias=True)

    def items_of(self, task: str) -> list[Item]:
        """The items of one task, in order."""
        return [item for item in self.items if item.task == task]


def save_results(results: EvalResults, folder: Path) -> Path:
    """Write ``items.jsonl``, then ``eval.json`` (whose presence means the evaluation is whole); returns the latter."""
    summary = json.dumps(results.to_dict(), indent=2, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    lines = (item.model_dump_json(exclude_defaults=True) + "\n" for item in results.items)
    write_atomically(folder / ITEMS_FILE, "".join(lines))
    write_atomically(folder / EVAL_FILE, summary)
    return folder / EVAL_FILE


def load_results(path: Path | str) -> EvalResults:
    """Read an evaluation from its folder or its ``eval.json``.

    Raises:
        UserError: a file is missing, is not JSON, or does not follow the schema.
    """
    path = Path(path)
    file = path / EVAL_FILE if path.is_dir() else path
    if not file.exists():
        raise UserError(f"no evaluation at {path}: expected {EVAL_FILE}, which `entrodrop eval --output` writes")
    results = _parse(EvalResults, file.read_bytes(), str(file))
    items_file = file.with_name(ITEMS_FILE)
    if not items_file.exists():
        raise UserError(f"{file} has no {ITEMS_FILE} beside it: the per-item scores are needed")
    with items_file.open("rb") as lines:
        results.items = [_parse(Item, line, f"{items_file} line {i}") for i, line in enumerate(lines, 1)]
    _refuse_contradictions(results, file, items_file)
    return results


def _parse(model: type[BaseModel], text: bytes, where: str) -> Any:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{where} is malformed: {first_problem(error)}") from error


def _refuse_contradictions(results: EvalResults, file: Path, items_file: Path) -> None:
    """What each file may say on its own, but not the two together."""
    for name, task in results.tasks.items():
        if task.primary not in task.metrics:
            raise UserError(
                f'{file} is malformed: tasks.{name}.primary is "{task.primary}", which is none of its metrics'
            )
    for line, item in enumerate(results.items, 1):
        metrics = results.tasks[item.task].metrics if item.task in results.tasks else {}
        missing = metrics.keys() - item.metrics.keys()
        if missing:
            raise UserError(f'{items_file} line {line} lacks "{min(missing)}", which {file.name} gives for {item.task}')
