"""Writing files and folders so that they are either whole or as they were before."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from entrodrop_tune.errors import UserError


def require_folder(path: Path, option: str = "--output") -> None:
    """Refuse a folder to write into that can be none, before any work is done for it; nothing is created.

    Raises:
        UserError: ``path``, or what it would lie in, is a file or cannot be written; ``option`` is where it was given.
    """
    there = next((place for place in (path, *path.parents) if os.path.lexists(place)), Path())
    if not there.is_dir():
        raise UserError(f"{option} {path}: {there} is not a folder. Choose another one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: no permission to write in {there}. Choose another folder.")


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` is at any moment either the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A lone surrogate from hostile input has no UTF-8; in JSON its escape is what stands for it.
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that becomes ``path`` at the end, or vanishes if the body raises.

    ``path`` must not exist, or be an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
