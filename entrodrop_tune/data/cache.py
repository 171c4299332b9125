"""Tokenised sources on disk, keyed by everything that shapes them."""

import hashlib
import json
import secrets
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from entrodrop_tune.data.report import SourceReport
from entrodrop_tune.data.sample import Sample

VERSION = 2
"""Raise when tokenisation changes meaning, so that old files are not reused."""


def cache_file(cache_dir: str | None, key: dict[str, Any]) -> Path | None:
    """Where the result for ``key`` (plain data) is kept; ``None`` when caching is off."""
    if cache_dir is None:
        return None
    text = json.dumps({"version": VERSION, **key}, sort_keys=True)
    return Path(cache_dir).expanduser() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def read_cache(path: Path) -> tuple[list[Sample], SourceReport] | None:
    """What :func:`write_cache` wrote, or ``None`` if there is nothing usable."""
    try:
        with np.load(path, allow_pickle=False) as file:
            report = SourceReport(**json.loads(str(file["report"])))
            ids, ends = file["ids"], file["ends"]
            tokens, is_target = file["tokens"], file["is_target"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None
    starts = [0, *ends[:-1]]
    samples = [Sample(int(i), tokens[a:b], is_target[a:b]) for i, a, b in zip(ids, starts, ends, strict=True)]
    return samples, report


def write_cache(path: Path, samples: list[Sample], report: SourceReport) -> None:
    """Write atomically; a full or read-only disk only costs the next run its time."""
    arrays: dict[str, Any] = {
        "report": np.array(json.dumps(asdict(report))),
        "ids": np.array([s.id for s in samples], dtype=np.int64),
        "ends": np.cumsum([len(s) for s in samples], dtype=np.int64),
        "tokens": np.concatenate([s.tokens for s in samples]),
        "is_target": np.concatenate([s.is_target for s in samples]),
    }
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.savez(file, **arrays)
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 over the tokenizer's full definition and chat template."""
    definition = tokenizer.backend_tokenizer.to_str()
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    special = json.dumps({k: str(v) for k, v in tokenizer.special_tokens_map.items()}, sort_keys=True)
    return hashlib.sha256("\0".join((definition, template, special)).encode()).hexdigest()
