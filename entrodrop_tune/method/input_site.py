"""Values remembered between epochs, by which a rule drops before the forward pass, and the input tokens replaced."""

import ctypes
import hashlib
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def corrupt_tokens(tokens: Tensor, drop: Tensor, replacement: int | Tensor) -> Tensor:
    """Replace the tokens that were dropped as *targets* wherever they are *inputs*.

    Row t of ``drop`` speaks of predicting token t + 1, so it is that token that is replaced. The first token of a row
    is nobody's target and stays.

    Args:
        tokens: ``[..., T]`` int.
        drop: ``[..., T]`` bool, in the positions of the labels (``labels[t]`` is ``tokens[t + 1]``).
        replacement: a token id, or ids of the shape of ``tokens``.
    """
    if tokens.shape != drop.shape or drop.dtype != torch.bool:
        raise ValueError(f"drop must be bool {tuple(tokens.shape)}, got {drop.dtype} {tuple(drop.shape)}")
    replaced = torch.zeros_like(drop)
    replaced[..., 1:] = drop[..., :-1]
    return torch.where(replaced, replacement, tokens).to(tokens.dtype)


class EntropyCache:
    """Entropies of each sample's positions as last measured, in fp16, keyed by sample id.

    Whatever :meth:`TokenSelector.statistic` a rule goes by can stand in for them (NLLs for ``loss``).

    At epoch 0 nothing is known: :meth:`get` gives None and the caller either drops nothing or fills the cache by a
    pass without gradients. One flat buffer (2 bytes a token) that moves to a memory-mapped file when it outgrows
    ``memory_limit``.

    Args:
        folder: where the file goes; default is the system's temporary folder. It disappears with the cache.
        memory_limit: bytes held in memory.
    """

    def __init__(self, folder: str | Path | None = None, memory_limit: int = 256 * 2**20) -> None:
        self._folder = folder
        self._memory_limit = memory_limit
        self._places: dict[int, tuple[int, int]] = {}
        self._values = torch.empty(0, dtype=torch.float16)
        self._used = 0
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._sorted: Tensor | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, sample_id: int) -> bool:
        return int(sample_id) in self._places

    @property
    def on_disk(self) -> bool:
        """Whether the values live in a file."""
        return self._directory is not None

    def put(self, sample_id: int, entropies: Tensor) -> None:
        """Remember ``entropies [T]`` (nats; nan where there is no target) in place of what was known.

        Raises:
            ValueError: the sample was stored with another length, so the id does not name one content.
        """
        self._sorted = None
        entropies = entropies.detach().flatten()
        start, length = self._places.get(int(sample_id), (self._used, entropies.numel()))
        if length != entropies.numel():
            raise ValueError(f"sample {sample_id}: {entropies.numel()} entropies, but {length} were stored before")
        if int(sample_id) not in self._places:
            self._reserve(self._used + length)
            self._places[int(sample_id)] = (start, length)
            self._used += length
        self._values[start : start + length] = entropies.to("cpu", torch.float16)

    def get(self, sample_id: int) -> Tensor | None:
        """fp32 ``[T]``, or None for a sample never seen."""
        place = self._places.get(int(sample_id))
        return None if place is None else self._values[place[0] : place[0] + place[1]].float()

    def quantile(self, q: float) -> float | None:
        """The remembered value with a fraction ``q`` of all others below it (q = 1: inf); None when there is none."""
        values = self._in_order()
        if values.numel() == 0:
            return None
        return math.inf if q == 1.0 else float(values[math.floor(q * values.numel())])

    def rank(self, value: float) -> float | None:
        """The fraction of remembered values below ``value``; None when there is none."""
        values = self._in_order()
        return float(torch.searchsorted(values, value)) / values.numel() if values.numel() else None

    def _in_order(self) -> Tensor:
        if self._sorted is None:  # asked for every step, changed once an epoch
            values = self._values[: self._used]
            self._sorted = values[values.isfinite()].float().sort().values
        return self._sorted

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors (fit for safetensors): ids, lengths, values in that order, and their digest."""
        ids = torch.tensor(list(self._places), dtype=torch.int64)
        lengths = torch.tensor([length for _, length in self._places.values()], dtype=torch.int64)
        values = self._values[: self._used].clone()
        return {"ids": ids, "lengths": lengths, "values": values, "digest": _digest(ids, lengths, values)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a saved state.

        Raises:
            ValueError: the content does not match its digest.
        """
        ids, lengths, values = state["ids"], state["lengths"], state["values"]
        if not torch.equal(_digest(ids, lengths, values), state["digest"]):
            raise ValueError("entropy cache: the saved state is damaged (its digest does not match)")
        self._places, self._used = {}, 0
        for sample_id, part in zip(ids.tolist(), values.split(lengths.tolist()), strict=True):
            self.put(sample_id, part)

    def _reserve(self, size: int) -> None:
        if size <= self._values.numel():
            return
        # Doubling keeps the copying linear in the number of tokens.
        capacity = max(size, 2 * self._values.numel(), 4096)
        if capacity * 2 <= self._memory_limit:
            grown = torch.empty(capacity, dtype=torch.float16)
        else:
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(prefix="entropy-cache-", dir=self._folder)
            path = Path(self._directory.name) / f"{capacity}.f16"
            grown = torch.from_file(str(path), shared=True, size=capacity, dtype=torch.float16)
        grown[: self._used] = self._values[: self._used]
        self._values = grown
        if self._directory is not None:
            for stale in Path(self._directory.name).iterdir():
                if stale.name != f"{capacity}.f16":
                    stale.unlink()


def _digest(*tensors: Tensor) -> Tensor:
    content = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.contiguous()
        content.update(ctypes.string_at(flat.data_ptr(), flat.nbytes))
    return torch.frombuffer(bytearray(content.digest()), dtype=torch.uint8)
