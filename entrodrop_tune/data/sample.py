"""One tokenised training example and its stable identity."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Tokens of one example.

    ``id`` is a 63-bit hash of the row's content (after templates, before tokenisation), so it does not depend on
    the row's place in the file, on shuffling or on the tokenizer. The k-th exact repeat of a row gets its own id.
    """

    id: int
    tokens: NDArray[np.int32]
    """``[T]``."""
    is_target: NDArray[np.bool_]
    """``[T]``, true where the token is to be predicted."""

    def __len__(self) -> int:
        return len(self.tokens)


def content_id(content: str) -> int:
    """63-bit hash of ``content``."""
    return _hash63(content.encode("utf-8", "surrogatepass"))


def distinct_ids(samples: Sequence[Sample]) -> tuple[NDArray[np.int64], int]:
    """Ids int64 ``[N]`` in which the k-th repeat of a sample has an id of its own, and the number of repeats."""
    seen: Counter[int] = Counter()
    ids = np.empty(len(samples), dtype=np.int64)
    for i, sample in enumerate(samples):
        occurrence = seen[sample.id]
        ids[i] = _hash63(b"%d repeat %d" % (sample.id, occurrence)) if occurrence else sample.id
        seen[sample.id] += 1
    return ids, len(samples) - len(seen)


def _hash63(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def hash_order(ids: NDArray[np.int64], *keys: int) -> NDArray[np.intp]:
    """Permutation that sorts ``ids`` by a hash of (keys, id): a shuffle that is the same on every machine and version.

    Args:
        ids: Distinct 63-bit ids, ``[N]``.
        keys: What the shuffle depends on, for example seed and epoch.
    """
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _mix(state ^ _mix(np.array([key], dtype=np.uint64)))
    return np.lexsort((ids, _mix(ids.astype(np.uint64) ^ state)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's output function (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
