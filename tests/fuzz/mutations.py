"""Damage to valid documents, for hypothesis: what a slip of the hand, another tool or a bad disk makes of them."""

import copy
import json
import os
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# FUZZ_FACTOR=20 pytest tests/fuzz looks for new faults; the suite itself takes a fixed sample.
FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples * FACTOR, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["", "0", "-1", "nan", "../..", "<b>", "a" * 300, "\u2028", "\x00", "\ud800", "${x}", "???"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(document: Any, at: tuple = ()) -> Iterator[tuple]:
    """The path of every value below the top of ``document``."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield (*at, key)
        yield from places(document[key], (*at, key))


@st.composite
def mutated(draw: Any, document: Any, values: Any = json_values, most: int = 2) -> Any:
    """``document`` (JSON) with one to ``most`` values replaced, removed, repeated or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        found = list(places(document))
        if not found:
            break
        *parents, key = draw(st.sampled_from(found))
        node = document
        for parent in parents:
            node = node[parent]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "repeat"]))
        if kind == "replace":
            node[key] = draw(values)
        elif kind == "remove":
            del node[key]
        elif isinstance(node, dict):
            node[draw(st.text(max_size=8))] = copy.deepcopy(node[key]) if kind == "repeat" else draw(values)
        else:
            node.insert(key, copy.deepcopy(node[key]) if kind == "repeat" else draw(values))
    return document


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """``content`` cut short, with a byte changed, or with a stretch of other bytes in it."""
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    kind = draw(st.sampled_from(["cut", "flip", "insert", "other"]))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    noise = draw(st.binary(max_size=30))
    return noise if kind == "other" else content[:at] + noise + content[at:]


def as_json(document: Any) -> bytes:
    """With lone surrogates and NaN as they come: a hostile writer is not bound to the standard."""
    return json.dumps(document, ensure_ascii=True).encode()
