"""Checkpoint folders on disk: complete or absent, verified by hash, never overwritten.

A checkpoint is written aside, flushed to disk and renamed, so that ``checkpoints/step_N`` either does not exist or is
whole. ``best`` and ``last`` are symbolic links that move atomically. What lies in ``step_N/`` itself is for others
(a Hugging Face model or a PEFT adapter); ``step_N/resume/`` is what this engine needs to go on.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"
RESUME = "resume"
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}


class CheckpointError(RuntimeError):
    """A checkpoint or another file of a run could not be written; the earlier checkpoints are intact."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk did to the text file ``path`` into a :class:`CheckpointError`."""
    try:
        yield
    except OSError as error:
        if _disk_trouble(error) is None:
            raise
        raise CheckpointError(
            f"{path} could not be written: {error}. The checkpoints beside it are intact. Free disk space, then run"
            " again with resume=true."
        ) from error


class CheckpointStore:
    """The ``checkpoints/`` folder of one run and its two pointers."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.folder = output_dir / "checkpoints"

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        names = (entry.name.removeprefix("step_") for entry in self.folder.glob("step_*") if entry.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let ``write`` fill a folder, then publish it as ``step_<step>``.

        Raises:
            CheckpointError: the folder could not be written (disk full, read-only); nothing was published.
        """
        final = self.path(step)
        if final.exists():
            return final
        aside = self.folder / f".step_{step}.tmp"
        with self.disk_trouble_explained(step):
            try:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
                write(aside)
                for folder in (aside / RESUME, aside):
                    if folder.is_dir():
                        _write_manifest(folder)
                _sync_tree(aside)
                aside.rename(final)
                _sync_folder(self.folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return final

    def shards(self, step: int) -> Path:
        """Where all processes write their parts of a checkpoint before :meth:`save` takes them over."""
        return self.folder / f".step_{step}.shards"

    @contextmanager
    def disk_trouble_explained(self, step: int) -> Iterator[None]:
        """Turn what the disk did to checkpoint ``step`` into a :class:`CheckpointError`; parts of it are removed."""
        try:
            yield
        except Exception as error:
            shutil.rmtree(self.shards(step), ignore_errors=True)
            trouble = _disk_trouble(error)
            if trouble is None:
                raise
            raise CheckpointError(
                f"checkpoint {self.path(step)} was not saved: {trouble}. Earlier checkpoints are intact"
                f" (newest: {self.path(self.steps()[-1]) if self.steps() else 'none'})."
                " Free disk space or choose another output_dir, then run again with resume=true."
            ) from error

    def point(self, name: str, step: int) -> None:
        """Move the link ``name`` (``best`` or ``last``) to ``step`` in one atomic rename."""
        aside = self.output_dir / f".{name}.tmp"
        aside.unlink(missing_ok=True)
        aside.symlink_to(self.path(step).relative_to(self.output_dir), target_is_directory=True)
        aside.replace(self.output_dir / name)

    def pointed(self, name: str) -> int | None:
        """The step ``name`` points to, or None."""
        link = self.output_dir / name
        return int(link.readlink().name.removeprefix("step_")) if link.is_symlink() else None

    def prune(self, keep_last: int, best: set[int | None]) -> None:
        """Delete all but the newest ``keep_last`` and ``best``; an older ``best`` loses its resume state only."""
        for leftover in self.folder.glob(".trash_*"):  # of a kill while deleting
            shutil.rmtree(leftover)
        newest = self.steps()[-keep_last:]
        for step in self.steps():
            if step in newest:
                continue
            doomed = self.path(step) / RESUME if step in best else self.path(step)
            if doomed.exists():
                trash = self.folder / f".trash_{step}"
                doomed.rename(trash)  # a kill while deleting must not leave a folder that looks whole
                shutil.rmtree(trash)

    def newest_good(self, warn: Callable[[str], None]) -> int | None:
        """The newest step whose checkpoint and resume state match their hashes; ``warn`` hears of each damaged one."""
        for step in reversed(self.steps()):
            folder = self.path(step)
            if not (folder / RESUME).is_dir():
                continue
            damage = _damage(folder) or _damage(folder / RESUME)
            if damage is None:
                return step
            warn(f"checkpoint {folder} is damaged ({damage}): falling back to the one before it")
        return None

    def forget_after(self, step: int) -> None:
        """Delete checkpoints newer than ``step`` (damaged or unfinished ones, which the resumed run writes again)."""
        for newer in self.steps():
            if newer > step:
                shutil.rmtree(self.path(newer))
        for unfinished in self.folder.glob(".step_*"):
            shutil.rmtree(unfinished)


def _disk_trouble(error: BaseException | None) -> BaseException | None:
    """The error in ``error``'s chain that is the disk's doing, or None.

    torch.save hides the system's error behind one of its own; safetensors has the system's words inside its own type.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return error
        if type(error).__name__ == "SafetensorError" and "I/O error" in str(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def _own_files(folder: Path) -> list[Path]:
    """Files a folder's manifest answers for: all below it but the manifest and, at the top, the resume state."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return sorted(path for path in files if RESUME not in path.relative_to(folder).parts)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path) -> None:
    digests = {str(path.relative_to(folder)): _digest(path) for path in _own_files(folder)}
    (folder / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=1) + "\n")


def _damage(folder: Path) -> str | None:
    """What is wrong with ``folder``, or None."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder.name}/{MANIFEST} is missing or unreadable"
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} does not match its hash"
    return None


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
