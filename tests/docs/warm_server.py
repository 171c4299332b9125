"""Run many short programs without importing torch for each: a process that has imported all forks a child a request.

Requests come over a Unix socket from ``warm_client.py``, which stands in for ``entrodrop``, ``tune`` and ``python`` on
the PATH of the documentation's shell blocks. A child takes over the client's standard streams, folder, environment and
arguments, and its exit code goes back.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path

PRELOAD = (
    "torchtune._cli.tune",
    "entrodrop_tune.cli.main",
    "entrodrop_tune.training.engine",
    "entrodrop_tune.training.preflight",
    "entrodrop_tune.evaluation.runner",
    "entrodrop_tune.analysis.report",
    "entrodrop_tune.analysis.entropy_command",
    "entrodrop_tune.analysis.sweep_report",
    "lm_eval.models.huggingface",
    "transformers.trainer",
    "peft",
)
ITEMS_A_TASK = 2


def main(address: str) -> None:
    for name in PRELOAD:
        import_module(name)
    _spare_time()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children that answer requests
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(1.0)
        parent = os.getppid()
        while os.getppid() == parent:  # outlives nobody
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _spare_time() -> None:
    """The commands are the user's; what they evaluate on is less, and nobody asks pip and git about the machine."""
    import lm_eval.evaluator

    from entrodrop_tune.analysis import sweep_run
    from entrodrop_tune.evaluation.suites import SUITES, SuiteTask

    lm_eval.evaluator.add_env_info = lambda results: None
    sweep_run._TRIALS = multiprocessing.get_context("fork")  # all is imported here already
    for name, tasks in SUITES.items():
        SUITES[name] = tuple(SuiteTask(task.name, ITEMS_A_TASK) for task in tasks)


def _answer(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    child = os.fork()
    if child == 0:
        _become(streams, **json.loads(message))
    _, status = os.waitpid(child, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status) & 0xFF).encode())
    os._exit(0)


def _become(streams: list[int], argv: list[str], folder: str, environment: dict[str, str]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.environ["PYTHON_EXEC"] = str(Path(argv[0]).with_name("python"))  # what torchrun starts
    code: object = 1
    try:
        _run(argv)
        code = 0
    except SystemExit as exit:
        code = exit.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _run(argv: list[str]) -> None:
    program, arguments = Path(argv[0]).name, argv[1:]
    if program == "entrodrop":
        sys.argv = argv
        sys.modules["entrodrop_tune.cli.main"].main()
    elif program == "tune":
        sys.argv = argv
        sys.modules["torchtune._cli.tune"].main()
    else:
        while arguments[0] != "-m" and arguments[0].startswith("-"):
            arguments = arguments[1:]
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, "")
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
