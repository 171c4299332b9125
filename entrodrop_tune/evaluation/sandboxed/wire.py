"""Messages between the checker and the program under test: length-prefixed pickles of plain data and references.

The program's side is hostile. So the checker's reader builds nothing but the plain types listed here, never code of
the sender's choice, and whatever else the program returns crosses as an opaque reference, which equals only itself:
an object whose ``__eq__`` always says yes gains nothing.
"""

import io
import os
import pickle
from collections.abc import Callable
from typing import Any

MAX_MESSAGE = 1 << 24
_EXACT = (type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice)
# Values of these types compare by content and carry no behaviour of the program.
_STANDARD = {
    ("collections", "Counter"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
}
_BUILTINS = {
    "complex",
    "bytearray",
    "set",
    "frozenset",
    "range",
    "slice",
    "list",
    "tuple",
    "dict",
    "str",
    "int",
    "float",
    "bytes",
}
_BASES: tuple[Any, ...] = (bool, int, float, str, bytes, list, tuple, dict, set, frozenset)


class EndOfStream(Exception):
    """The other side is gone."""


def _name(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def read_exactly(fd: int, size: int) -> bytes:
    """Exactly ``size`` bytes from ``fd``; ``EndOfStream`` if it ends before."""
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 16))
        if not part:
            raise EndOfStream
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_frame(fd: int) -> bytes:
    """One message's bytes; ``ValueError`` if it claims to be longer than ``MAX_MESSAGE``."""
    size = int.from_bytes(read_exactly(fd, 4), "big")
    if size > MAX_MESSAGE:
        raise ValueError(f"a message of {size} bytes")
    return read_exactly(fd, size)


def write_frame(fd: int, data: bytes) -> None:
    """Send one message's bytes."""
    view = memoryview(len(data).to_bytes(4, "big") + data)
    while view:
        view = view[os.write(fd, view) :]


class PlainPickler(pickle.Pickler):
    """Pickles plain data by value; ``reference`` names everything else (it returns the persistent id)."""

    def __init__(self, file: io.BytesIO, reference: Callable[[Any], Any]) -> None:
        super().__init__(file, protocol=4)
        self._reference = reference

    def persistent_id(self, obj: Any) -> Any:
        cls = type(obj)
        if cls in _EXACT or _name(cls) in _STANDARD or isinstance(obj, _BASES):
            return None
        if isinstance(obj, type) and (obj in _EXACT or _name(obj) in _STANDARD):
            return None  # named inside the pickle of a value
        if cls.__module__ == "numpy" and hasattr(obj, "dtype") and getattr(obj, "ndim", 1) == 0:
            return None
        return self._reference(obj)

    def reducer_override(self, obj: Any) -> Any:
        """Subclasses of plain types and numpy scalars go as the plain value."""
        cls = type(obj)
        if cls.__module__ == "numpy" and hasattr(obj, "dtype") and getattr(obj, "ndim", 1) == 0:
            value = obj.item()
            return type(value), (value,)
        if cls in _EXACT or _name(cls) in _STANDARD or isinstance(obj, type):
            return NotImplemented
        for base in _BASES:
            if isinstance(obj, base):
                return base, (base(obj),)
        return NotImplemented


class PlainUnpickler(pickle.Unpickler):
    """Builds plain data only; ``resolve`` turns a persistent id into an object."""

    def __init__(self, data: bytes, resolve: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._resolve = resolve

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STANDARD or (module == "builtins" and name in _BUILTINS):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")

    def persistent_load(self, pid: Any) -> Any:
        return self._resolve(pid)


def dumps(value: Any, reference: Callable[[Any], Any]) -> bytes:
    """``value`` as bytes, see ``PlainPickler``."""
    buffer = io.BytesIO()
    PlainPickler(buffer, reference).dump(value)
    return buffer.getvalue()


def loads(data: bytes, resolve: Callable[[Any], Any]) -> Any:
    """The value in ``data``, see ``PlainUnpickler``."""
    return PlainUnpickler(data, resolve).load()
