"""First code in a sandboxed process: apply limits, drop privileges, then become the worker or the checker.

Usage: ``bootstrap.py worker|checker LIMITS_JSON FD...``.
"""

import json
import os
import resource
import sys


def apply_limits(limits: dict[str, int]) -> None:
    """Set hard resource limits (soft = hard: no signal to catch first) and give up root for good."""
    uid = limits["uid"]
    if os.getuid() == 0 and uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    for name in ("AS", "CPU", "FSIZE", "NPROC", "NOFILE", "CORE"):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limits[name], limits[name]))


def main() -> None:
    role, limits, *fds = sys.argv[1:]
    settings = json.loads(limits)
    apply_limits(settings)
    sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), *settings["path"]]
    sys.setrecursionlimit(settings["recursion"])
    descriptors = [int(fd) for fd in fds]
    if role == "worker":
        import worker

        worker.serve(*descriptors)
    else:
        import checker

        checker.judge(*descriptors)


if __name__ == "__main__":
    main()
