"""Check one program against one problem's tests: two sandboxes, one for the program and one for the tests.

The tests never enter the program's process. They call it through a pipe and compare what comes back in their own
process, so that a program can pass only by returning the right values: patching ``assert``, exiting with status 0,
forging output or overriding ``==`` have nothing to act on.
"""

import contextlib
import functools
import io
import json
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Any

from entrodrop_tune.errors import UserError
from entrodrop_tune.evaluation.sandbox import Limits, find_sandbox, spawn
from entrodrop_tune.evaluation.sandboxed import wire


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed its tests, and why not."""

    passed: bool
    reason: str


def humaneval_job(problem: dict[str, Any], program: str) -> dict[str, Any]:
    """The job for a HumanEval problem; ``program`` is prompt and completion together."""
    return {
        "kind": "humaneval",
        "program": program,
        **{key: problem[key] for key in ("prompt", "test", "entry_point")},
    }


def mbpp_job(problem: dict[str, Any], program: str) -> dict[str, Any]:
    """The job for an MBPP problem."""
    return {
        "kind": "mbpp",
        "program": program,
        "reference": problem["code"],
        "setup": problem.get("test_setup_code") or "",
        "tests": list(problem["test_list"]),
    }


def check_program(job: dict[str, Any], limits: Limits | None = None) -> Verdict:
    """Run one job, which takes at most ``limits.wall_seconds`` and leaves no process behind.

    Raises:
        UserError: no sandbox works here.
    """
    limits, bwrap = limits or Limits(), find_sandbox()
    deadline = time.monotonic() + limits.wall_seconds
    with contextlib.ExitStack() as stack:
        job_read, job_write = _pipe(stack)
        requests_read, requests_write = _pipe(stack)
        answers_read, answers_write = _pipe(stack)
        verdict_read, verdict_write = _pipe(stack)
        of_worker = [requests_read, answers_write]
        of_checker = [job_read, requests_write, answers_read, verdict_write]
        for role, pipes in (("worker", of_worker), ("checker", of_checker)):
            process = spawn(bwrap, limits, role, [pipe.fileno() for pipe in pipes])
            stack.callback(_end, process)
        for pipe in of_worker + of_checker:  # a pipe ends for its reader when the last writer is gone
            pipe.close()
        try:
            wire.write_frame(job_write.fileno(), json.dumps(job).encode())
            data = _read_until(verdict_read.fileno(), deadline)
        except (wire.EndOfStream, BrokenPipeError):
            return Verdict(False, "the tests' process ended without a verdict")
    if data is None:
        return Verdict(False, f"timed out after {limits.wall_seconds:g} s")
    verdict = json.loads(data)
    return Verdict(verdict["passed"] is True, verdict["reason"])


@functools.cache
def require_working_sandbox() -> None:
    """Prove once that a right program passes and a wrong one fails, so that a broken sandbox is not taken for a score.

    Raises:
        UserError: no sandbox works here, or it fails the proof.
    """
    problem = {"prompt": "", "entry_point": "twice", "test": "def check(f):\n    assert f(2) == 4 and f(3) == 6"}
    right = check_program(humaneval_job(problem, "def twice(x): return 2 * x"))
    wrong = check_program(humaneval_job(problem, "def twice(x): return x + 2"))
    if not right.passed or wrong.passed:
        raise UserError(f"the sandbox starts but does not tell right from wrong here ({right.reason}; {wrong.reason})")


def _pipe(stack: contextlib.ExitStack) -> tuple[io.FileIO, io.FileIO]:
    read, write = os.pipe()
    return stack.enter_context(io.FileIO(read, "rb")), stack.enter_context(io.FileIO(write, "wb"))


def _read_until(descriptor: int, deadline: float) -> bytes | None:
    ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
    return wire.read_frame(descriptor) if ready else None


def _end(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
