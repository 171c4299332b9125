"""``run.json`` and the ``.jsonl`` journals of a training run as they are read back: checked; damage is named."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from entrodrop_tune.errors import UserError, first_problem

RECORD_FILE = "run.json"


def _iso_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time must say its time zone")
    return text


_Time = Annotated[str, AfterValidator(_iso_time)]
_Count = Annotated[int, Field(ge=1, lt=2**63)]


class _Parameters(BaseModel):
    total: _Count
    trainable: Annotated[int, Field(ge=0, lt=2**63)]


class _Source(BaseModel):
    path: str
    sha256: str


class _Data(BaseModel):
    train: list[_Source] = []
    validation: list[_Source] = []
    replay: list[_Source] = []


class _Record(BaseModel):
    """What anything here reads from ``run.json``; further keys are left alone."""

    model_config = ConfigDict(strict=True)

    recipe: str = ""
    exit: str = ""
    config: dict[str, Any] | None = None
    started: _Time | None = None
    ended: _Time | None = None
    resumed_from: int | None = None
    parameters: _Parameters | None = None
    steps_per_epoch: _Count | None = None
    total_steps: _Count | None = None
    world_size: _Count | None = None
    global_batch: _Count | None = None
    data: _Data | None = None
    versions: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None

    @field_validator("config")
    @classmethod
    def _sections(cls, config: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in ("model", "data", "adapter", "entrodrop"):
            if not isinstance((config or {}).get(name) or {}, dict):
                raise ValueError(f'"{name}" must be a mapping')
        return config


def read_record(folder: Path) -> dict[str, Any]:
    """``run.json`` in ``folder``.

    Raises:
        UserError: it cannot be read, is not JSON, or a value in it is none that a run writes.
    """
    file = folder / RECORD_FILE
    try:
        content = json.loads(file.read_bytes())
        _Record.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{file} is damaged: {first_problem(error)}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error}). Is the run folder damaged?") from None
    return content


def wall_seconds(record: dict[str, Any]) -> float | None:
    """From start to end of the run (of its last part, where it was resumed); None where either is not recorded."""
    if not record.get("started") or not record.get("ended"):
        return None
    return (datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])).total_seconds()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal, each with its ``step``; none if the file is absent.

    A last line cut short by a crash is left out.

    Raises:
        UserError: a line other than the last is not a JSON object, or a step is not a whole number.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise UserError(f"{path} line {number} is not valid JSON. Is the file damaged?") from None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} must be a JSON object, it is {str(row)[:40]!r}.")
        step = row.get("step")
        if not isinstance(step, int) or not 0 <= step < 2**53:
            raise UserError(f'{path} line {number}: "step" = {step!r}, it must be a whole number of 0 or more.')
        rows.append(row)
    return rows
