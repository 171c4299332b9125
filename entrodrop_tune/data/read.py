"""Files → rows. A row that cannot be read is yielded as a :class:`BadRow`, so that the caller counts or refuses it."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrodrop_tune.data.config import Source
from entrodrop_tune.errors import UserError

MAX_LINE_BYTES = 32 << 20
"""A longer JSONL line or CSV field is a broken file, not a row."""


@dataclass(frozen=True)
class BadRow:
    """A row that is no sample: ``kind`` is malformed, empty or too_long."""

    kind: str
    reason: str


Rows = Iterator[tuple[int, dict[str, Any] | BadRow | None]]
"""(line or row number from 1, row); ``None`` stands for a blank line."""


@dataclass(frozen=True)
class Table:
    """An opened source."""

    name: str
    fingerprint: str
    """Of the content: sha256 of the file, or the fingerprint of a Hugging Face data set."""
    count: int
    """Rows or lines, for progress."""
    unit: str
    """What the row numbers count: ``line`` or ``row``."""
    rows: Callable[[], Rows]


def open_table(source: Source) -> Table:
    """Open ``source`` for reading.

    Raises:
        UserError: it does not exist, its format is unknown, or the file as a whole is unreadable.
    """
    if source.path.startswith("hf://"):
        return _from_hub(source)
    path = Path(source.path).expanduser()
    if path.is_dir() and (path / "dataset_info.json").is_file():
        return _from_disk(path)
    if not path.is_file():
        raise UserError(_missing(source.path, path))
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f'data file {path} has an unknown format "{path.suffix}". Use {", ".join(_READERS)}.')
    if path.stat().st_size == 0:
        raise UserError(f"data file {path} is empty.")
    _refuse_utf16(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return reader(path, digest)


def _missing(given: str, path: Path) -> str:
    if path.is_dir():
        return f"data folder {path} is not a data set saved with datasets.save_to_disk: name a file in it."
    return (
        f"data file {given} does not exist. Make a sample with `entrodrop prepare gsm8k`, "
        "or write hf://ORG/NAME for a data set on the Hugging Face hub."
    )


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"data file {path} is UTF-16: save it as UTF-8.")


def _jsonl(path: Path, digest: str) -> Table:
    with path.open("rb") as file:
        count = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return Table(str(path), digest, count, "line", lambda: _jsonl_rows(path))


def _jsonl_rows(path: Path) -> Rows:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                yield number, BadRow("malformed", f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, _parse_line(line) if line.strip() else None


def _parse_line(line: bytes) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow("malformed", f"not UTF-8 (byte {error.start} is 0x{line[error.start]:02x})")
    except json.JSONDecodeError as error:
        return BadRow("malformed", f"not JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        return BadRow("malformed", "not JSON we can read (nested too deeply)")
    except ValueError:
        return BadRow("malformed", "not JSON we can read (a number has too many digits)")
    return _as_row(row)


def _as_row(row: Any) -> dict[str, Any] | BadRow:
    if isinstance(row, dict):
        return row
    return BadRow("malformed", f"a row must be a JSON object, this is {_json_type(row)}")


def _json_type(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _json(path: Path, digest: str) -> Table:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"data file {path} is not UTF-8 (byte {error.start}).") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        hint = " One object a line? Then name it .jsonl." if "Extra data" in str(error) else ""
        raise UserError(f"data file {path} is not JSON: {error}.{hint}") from None
    if not isinstance(content, list):
        raise UserError(f"data file {path} must hold a list of objects, it holds {_describe(content)}.")
    rows = [_as_row(row) for row in content]
    return Table(str(path), digest, len(rows), "row", lambda: enumerate(rows, start=1))


def _describe(content: Any) -> str:
    return f"one object with keys {', '.join(content)}" if isinstance(content, dict) else _json_type(content)


def _csv(path: Path, digest: str) -> Table:
    with path.open("rb") as file:
        count = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return Table(str(path), digest, count, "line", lambda: _csv_rows(path))


def _csv_rows(path: Path) -> Rows:
    csv.field_size_limit(MAX_LINE_BYTES)
    # Undecodable bytes survive as lone surrogates, so that they spoil their row and not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, BadRow("malformed", f"not CSV ({error})")
                if reader.fieldnames is None:
                    return
                continue
            yield reader.line_num, _check_csv(row, len(reader.fieldnames or ()))


def _check_csv(row: dict[Any, Any], columns: int) -> dict[str, Any] | BadRow:
    if None in row or None in row.values():  # fields beyond the header, or too few
        found = columns + len(row.get(None, ())) - sum(value is None for value in row.values())
        return BadRow("malformed", f"{found} fields where the header names {columns}")
    if any("\udc80" <= char <= "\udcff" for value in row.values() for char in value):
        return BadRow("malformed", "not UTF-8")
    return row


def _parquet(path: Path, digest: str) -> Table:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"data file {path} is not Parquet: {' '.join(str(error).split())}") from None

    def rows() -> Rows:
        number = 0
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row

    return Table(str(path), digest, file.metadata.num_rows, "row", rows)


def _from_disk(path: Path) -> Table:
    from datasets import load_from_disk

    try:
        return _from_dataset(load_from_disk(str(path)), str(path))
    except Exception as error:  # a file that is missing or damaged raises many unrelated types
        raise UserError(f"data folder {path} is no whole saved data set: {_one_line(error)}") from None


def _from_hub(source: Source) -> Table:
    from datasets import load_dataset

    name = source.path.removeprefix("hf://")
    try:
        return _from_dataset(load_dataset(name, source.subset, split=source.split), source.path)
    except Exception as error:  # the hub's client raises many unrelated types; each means "not available"
        raise UserError(f"cannot load {source.path} (split {source.split}) from the hub: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _from_dataset(dataset: Any, name: str) -> Table:
    return Table(name, dataset._fingerprint, len(dataset), "row", lambda: enumerate(dataset, start=1))


_READERS: dict[str, Callable[[Path, str], Table]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
