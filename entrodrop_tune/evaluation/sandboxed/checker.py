"""Runs the tests of one problem against a program held by another process, and gives the verdict.

The tests, and whatever they compare, live here; the program lives behind ``Remote`` references. A test passes when
the values that come back from the program satisfy it in this process, where the program has no code.
"""

import ast
import builtins
import json
import os
from typing import Any

import wire


class ProgramEnded(Exception):
    """The program's process is gone: it exited, crashed or was killed by a limit."""


class Connection:
    """Sends requests to the program's process and builds plain values from its answers."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = requests, answers

    def load(self, source: str) -> None:
        """Execute the program's source over there."""
        self._exchange(source)

    def request(self, operation: str, *arguments: Any) -> Any:
        """Perform one operation over there; an exception there is raised here as the same built-in type."""
        return self._exchange((operation, *arguments))

    def _exchange(self, message: Any) -> Any:
        try:
            wire.write_frame(self._requests, wire.dumps(message, _reference_of))
            reply = wire.loads(wire.read_frame(self._answers), lambda pid: Remote(self, int(pid)))
        except (wire.EndOfStream, BrokenPipeError):
            raise ProgramEnded("the program's process ended") from None
        succeeded, value = reply
        if succeeded is True:
            return value
        kind, text = value
        error = getattr(builtins, str(kind), RuntimeError)
        # An exception that would end this process, or pass for a failed assertion of ours, comes as RuntimeError.
        if not (isinstance(error, type) and issubclass(error, Exception)) or error is AssertionError:
            raise RuntimeError(f"{kind}: {text}")
        raise error(str(text))


class Remote:
    """Something in the program's process, by name or number. It equals only itself."""

    def __init__(self, connection: Connection, target: int | str) -> None:
        object.__setattr__(self, "_remote", (connection, target))

    def _perform(self, operation: str, *arguments: Any) -> Any:
        connection, _ = object.__getattribute__(self, "_remote")
        return connection.request(operation, self, *arguments)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._perform("call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols (copying, pickling, hashing) are not forwarded
            raise AttributeError(name)
        return self._perform("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._perform("setattr", name, value)

    def __iter__(self) -> Any:
        return iter(list(self._perform("iterate")))

    def __len__(self) -> int:
        return self._perform("length")

    def __bool__(self) -> bool:
        return self._perform("truth") is True

    def __getitem__(self, key: Any) -> Any:
        return self._perform("item", key)


def _reference_of(obj: Any) -> int | str:
    if type(obj) is Remote:
        return object.__getattribute__(obj, "_remote")[1]
    raise TypeError(f"a test passes a {type(obj).__name__}, which cannot cross to the program")


def check_humaneval(job: dict[str, Any], connection: Connection) -> None:
    """Run ``check(candidate)`` of a HumanEval problem; helpers of the prompt are ours, not the program's."""
    connection.load(job["program"])
    candidate = Remote(connection, job["entry_point"])
    namespace: dict[str, Any] = {"__name__": "checks"}
    exec(compile(job["prompt"], "<prompt>", "exec"), namespace)
    namespace[job["entry_point"]] = candidate
    exec(compile(job["test"], "<test>", "exec"), namespace)
    namespace["check"](candidate)


def check_mbpp(job: dict[str, Any], connection: Connection) -> None:
    """Run the assertions of an MBPP problem. Names the reference program defines are the program's; imports ours."""
    connection.load(job["program"])
    namespace: dict[str, Any] = {"__name__": "checks"}
    reference = ast.parse(job["reference"])
    for name in _defined_names(reference):
        namespace[name] = Remote(connection, name)
    imports: list[ast.stmt] = [node for node in reference.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "<imports>", "exec"), namespace)
    exec(compile(job["setup"], "<setup>", "exec"), namespace)
    for test in job["tests"]:
        exec(compile(test, "<test>", "exec"), namespace)


def _defined_names(module: ast.Module) -> list[str]:
    names = []
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


_KINDS = {"humaneval": check_humaneval, "mbpp": check_mbpp}


def judge(job_fd: int, requests: int, answers: int, verdict_fd: int) -> None:
    """Read a job (JSON), run its tests, write ``{"passed": ..., "reason": ...}`` (JSON) to ``verdict_fd``."""
    job = json.loads(wire.read_frame(job_fd))
    try:
        _KINDS[job["kind"]](job, Connection(requests, answers))
        verdict = {"passed": True, "reason": "passed"}
    except BaseException as error:  # tests run code of the data set and meet whatever the program returns
        verdict = {"passed": False, "reason": f"{type(error).__name__}: {error}"[:500]}
    wire.write_frame(verdict_fd, json.dumps(verdict).encode())
    os._exit(0)
