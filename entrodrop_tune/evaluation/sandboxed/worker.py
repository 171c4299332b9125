"""Holds the program under test. It executes the program, then answers the checker's requests; it never sees a test.

Whatever the program does to this process, all it can do is answer a call with a value, which the checker compares.
"""

import sys
import types
from collections.abc import Callable
from typing import Any

import wire

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, args, kwargs: target(*args, **kwargs),
    "getattr": lambda target, name: getattr(target, name),
    "setattr": lambda target, name, value: setattr(target, name, value),
    "iterate": lambda target: list(target),
    "truth": lambda target: bool(target),
    "length": lambda target: len(target),
    "item": lambda target, key: target[key],
}


def serve(requests: int, answers: int) -> None:
    """Read the program from ``requests``, run it, then answer one request after another until the checker ends."""
    objects: list[Any] = []

    def reference(obj: Any) -> int:
        objects.append(obj)
        return len(objects) - 1

    program = types.ModuleType("program")
    sys.modules["program"] = program

    def resolve(pid: Any) -> Any:
        return objects[pid] if isinstance(pid, int) else vars(program)[pid]

    def answer(work: Any) -> None:
        try:
            reply = wire.dumps((True, work()), reference)
        except BaseException as error:  # the program may raise anything, SystemExit included
            reply = wire.dumps((False, (type(error).__name__, str(error)[:500])), reference)
        wire.write_frame(answers, reply)

    source = wire.loads(wire.read_frame(requests), resolve)
    answer(lambda: exec(compile(source, "<program>", "exec"), vars(program)))
    while True:
        try:
            operation, *arguments = wire.loads(wire.read_frame(requests), resolve)
        except wire.EndOfStream:
            return
        except KeyError as error:
            problem = f"name {error} is not defined"
            answer(lambda problem=problem: (_ for _ in ()).throw(NameError(problem)))
            continue
        answer(lambda op=operation, rest=arguments: _OPERATIONS[op](*rest))
