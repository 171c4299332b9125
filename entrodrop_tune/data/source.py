"""One source → samples and its counts."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from tqdm import tqdm

from entrodrop_tune.data.cache import cache_file, read_cache, tokenizer_fingerprint, write_cache
from entrodrop_tune.data.config import DataConfig, Source
from entrodrop_tune.data.conversation import Conversation, RowError, resolve_columns, to_conversation
from entrodrop_tune.data.read import BadRow, Table, open_table
from entrodrop_tune.data.report import SourceReport
from entrodrop_tune.data.sample import Sample, content_id
from entrodrop_tune.data.tokenize import ConversationTokenizer, Tokens
from entrodrop_tune.errors import UserError

_ROWS_TO_SEE_COLUMNS = 50


def load_source(
    source: Source, config: DataConfig, tokenizer: Any, progress: bool = True
) -> tuple[list[Sample], SourceReport]:
    """Read, check and tokenise one source, from the cache if it was done before.

    Raises:
        UserError: the source is unreadable, or holds rows that ``bad_rows`` or ``too_long`` refuse.
    """
    table = open_table(source)
    path = cache_file(config.cache_dir, _key(table, source, config, tokenizer))
    cached = read_cache(path) if path else None
    if cached is None:
        samples, report = _tokenise(table, source, config, tokenizer, progress)
        _refuse_if_asked(report, config)
        if path:
            write_cache(path, samples, report)
    else:
        samples, report = cached
    return samples, report


def _key(table: Table, source: Source, config: DataConfig, tokenizer: Any) -> dict[str, Any]:
    return {
        "name": table.name,  # the report names its lines
        "content": table.fingerprint,
        "limit": source.limit,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "columns": (source.columns or config.columns).model_dump(),
        "template": (source.template or config.template).model_dump(),
        **config.model_dump(include={"system_prompt", "max_length", "too_long", "bad_rows"}),
    }


def _tokenise(
    table: Table, source: Source, config: DataConfig, tokenizer: Any, progress: bool
) -> tuple[list[Sample], SourceReport]:
    report = SourceReport(table.name, table.fingerprint)
    tokenise = ConversationTokenizer(tokenizer)
    samples: list[Sample] = []
    rows = tqdm(
        _conversations(table, source, config, report),
        total=source.limit or table.count,
        desc=f"Tokenising {table.name}",
        unit="row",
        disable=not progress,
        leave=False,
        delay=1,
    )
    for where, conversation in rows:
        try:
            pieces = _fit(tokenise(conversation), conversation, config, report, where)
        except RowError as error:
            report.count(error.kind, where, str(error))
            continue
        content = json.dumps(conversation, ensure_ascii=False)
        for number, piece in enumerate(pieces):
            identity = content_id(f"{content}\0{number}" if number else content)
            samples.append(Sample(identity, piece.ids, piece.is_target))
    report.samples = len(samples)
    return samples, report


def _conversations(
    table: Table, source: Source, config: DataConfig, report: SourceReport
) -> Iterator[tuple[str, Conversation]]:
    template = source.template or config.template
    head = list(islice(table.rows(), _ROWS_TO_SEE_COLUMNS))
    present = dict.fromkeys(key for _, row in head if isinstance(row, dict) for key in row)
    if not present and all(row is None for _, row in head):
        raise UserError(f"data file {table.name} has no rows.")
    if not present:
        _count_bad(table, report)
        return
    columns = resolve_columns(source.columns or config.columns, template, present, table.name)
    for number, row in islice(table.rows(), source.limit):
        where = f"{table.name}:{number}" if table.unit == "line" else f"{table.name} row {number}"
        if row is None:
            report.blank += 1
            continue
        report.rows += 1
        if isinstance(row, BadRow):
            report.count(row.kind, where, row.reason)
            continue
        try:
            yield where, to_conversation(row, columns, template, config.system_prompt)
        except RowError as error:
            report.count(error.kind, where, str(error))


def _count_bad(table: Table, report: SourceReport) -> None:
    for number, row in table.rows():
        if isinstance(row, BadRow):
            report.rows += 1
            report.count(row.kind, f"{table.name}:{number}", row.reason)


def _fit(
    tokens: Tokens, conversation: Conversation, config: DataConfig, report: SourceReport, where: str
) -> list[Tokens]:
    """Apply ``max_length``: the tokens as they are, cut, in pieces, or nothing."""
    length = len(tokens.ids)
    report.longest = max(report.longest, length)
    limit = config.max_length
    if length <= limit:
        return [tokens]
    report.count("too_long", where, f"{length} tokens")
    if config.too_long == "split" and isinstance(conversation, str):
        starts = range(0, length - 1, limit)  # a last piece of one token would have nothing to predict
        return [Tokens(tokens.ids[i : i + limit], tokens.is_target[i : i + limit]) for i in starts]
    if config.too_long in ("truncate", "split"):
        cut = Tokens(tokens.ids[:limit], tokens.is_target[:limit])
        if not cut.is_target[1:].any():
            raise RowError("empty", f"the first {limit} tokens (max_length) hold nothing to learn")
        return [cut]
    return []


def _refuse_if_asked(report: SourceReport, config: DataConfig) -> None:
    bad = report.malformed + report.empty
    if bad and config.bad_rows == "refuse":
        kind = "malformed" if report.malformed else "empty"
        raise UserError(
            f"{report.malformed} malformed and {report.empty} empty of {report.rows} rows in {report.path}; the first: "
            f"{report.first[kind]}. Mend the file, or set data.bad_rows=skip to leave such rows out."
        )
    if report.too_long and config.too_long == "refuse":
        raise UserError(
            f"{report.too_long} of {report.rows} rows in {report.path} exceed data.max_length={config.max_length} "
            f"(longest {report.longest} tokens; the first: {report.first['too_long']}). Raise data.max_length, "
            "or set data.too_long to skip, truncate or split."
        )
    if not report.samples:
        raise UserError(f"{report.path}: none of {report.rows} rows can be used. {'; '.join(report.first.values())}")
