"""Which tasks a suite runs, and how many items of each."""

import math
from dataclasses import dataclass

from entrodrop_tune.errors import UserError, did_you_mean

MATH = (
    "entrodrop_gsm8k",
    "entrodrop_gsm8k_chat",
    "entrodrop_gsm8k_nll",
    "entrodrop_arithmetic",
    "entrodrop_competition_math",
)
CODE = ("entrodrop_humaneval", "entrodrop_mbpp", "entrodrop_mbpp_chat", "entrodrop_humaneval_nll", "entrodrop_mbpp_nll")
GENERAL = ("entrodrop_mmlu", "entrodrop_piqa", "entrodrop_hellaswag", "entrodrop_ifeval", "entrodrop_wikitext")
MEDICAL = ("entrodrop_pubmedqa",)


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite; ``limit`` is the number of its first items, ``None`` for all."""

    name: str
    limit: int | None = None


SUITES: dict[str, tuple[SuiteTask, ...]] = {
    # Two minutes for a 135 M model on two CPU cores: mostly likelihoods, which move where accuracies cannot.
    "quick": (
        SuiteTask("entrodrop_gsm8k_nll", 48),
        SuiteTask("entrodrop_gsm8k_chat", 16),
        SuiteTask("entrodrop_mbpp_nll", 40),
        SuiteTask("entrodrop_mbpp_chat", 16),
        SuiteTask("entrodrop_mmlu", 57),
        SuiteTask("entrodrop_piqa", 64),
        SuiteTask("entrodrop_hellaswag", 32),
        SuiteTask("entrodrop_wikitext_paragraphs", 32),
    ),
    "math": tuple(map(SuiteTask, MATH)),
    "code": tuple(map(SuiteTask, CODE)),
    "general": tuple(map(SuiteTask, GENERAL)),
    "medical": tuple(map(SuiteTask, MEDICAL)),
    "all": tuple(map(SuiteTask, MATH + CODE + GENERAL + MEDICAL)),
}


def suite_tasks(suite: str, limit: int | None = None) -> tuple[SuiteTask, ...]:
    """The tasks of ``suite`` (names of suites or of tasks, joined by commas), each at most ``limit`` items.

    A task that several of them name has the largest of its limits, in whatever order they stand.

    Raises:
        UserError: an unknown suite.
    """
    tasks: dict[str, SuiteTask] = {}
    for name in filter(None, map(str.strip, suite.split(","))):
        if name not in SUITES and not name.startswith("entrodrop_"):
            raise UserError(f'no suite "{name}".{did_you_mean(name, SUITES)}')
        for task in SUITES.get(name, (SuiteTask(name),)):
            tasks[task.name] = max(task, tasks.get(task.name, task), key=lambda one: one.limit or math.inf)
    if not tasks:
        raise UserError(f"--suite is empty: choose from {', '.join(SUITES)}")
    if limit is None:
        return tuple(tasks.values())
    return tuple(SuiteTask(task.name, min(limit, task.limit or limit)) for task in tasks.values())
