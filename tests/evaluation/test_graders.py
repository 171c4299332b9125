"""Graders on the official reference solutions score 100 %, on systematically broken ones 0 %."""

import pytest
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from entrodrop_tune.evaluation.harness import task_folder
from entrodrop_tune.evaluation.scores import multiple_choice, numeric_match
from tests.evaluation.test_sandbox import needs_sandbox

MANAGER = TaskManager(include_path=str(task_folder()), include_defaults=False)


class Oracle(LM):
    """Answers every prompt with a function of the document it belongs to."""

    def __init__(self, answer):
        super().__init__()
        self._answer = answer

    def generate_until(self, requests, disable_tqdm=False):
        return [self._answer(request.doc) for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def accuracy(task, answer, limit=50):
    """Metric -> value of ``task`` when the model answers ``answer(doc)``."""
    output = simple_evaluate(
        model=Oracle(answer),
        tasks=[task],
        task_manager=MANAGER,
        bootstrap_iters=0,
        limit=limit,
        confirm_run_unsafe_code=True,
    )
    result = output["results"][task]
    return {key: value for key, value in result.items() if "," in key and "stderr" not in key}


def off_by_one(answer):
    """The same solution with its final number one too large."""
    reasoning, number = answer.rsplit("#### ", 1)
    return f"{reasoning}#### {float(number.replace(',', '')) + 1:.0f}"


@pytest.mark.parametrize("task", ["entrodrop_gsm8k", "entrodrop_gsm8k_chat"])
def test_gsm8k(task):
    assert set(accuracy(task, lambda doc: doc["answer"]).values()) == {1.0}
    assert set(accuracy(task, lambda doc: off_by_one(doc["answer"])).values()) == {0.0}
    assert set(accuracy(task, lambda doc: "").values()) == {0.0}


def test_gsm8k_strict_wants_the_marker_and_flexible_does_not():
    scores = accuracy("entrodrop_gsm8k", lambda doc: f"The answer is {doc['answer'].split('#### ')[1]}.")
    assert scores == {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0}


def test_gsm8k_cot():
    def answer(doc):
        return f"So it is. The answer is {doc['answer'].split('#### ')[1]}."

    assert set(accuracy("entrodrop_gsm8k_cot", answer).values()) == {1.0}
    assert set(accuracy("entrodrop_gsm8k_cot", lambda doc: "The answer is 123456.").values()) == {0.0}


def test_arithmetic():
    assert set(accuracy("entrodrop_arithmetic", lambda doc: f"That makes {doc['Answer']}.00 in all.").values()) == {1.0}
    assert set(accuracy("entrodrop_arithmetic", lambda doc: f"{int(doc['Answer']) + 1}").values()) == {0.0}


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [("1,200", "1200", 1), ("$5.", "5", 1), ("5.0", "5", 1), ("[invalid]", "5", 0), ("-5", "5", 0)],
)
def test_numeric_match(answer, gold, right):
    assert numeric_match({"Answer": gold}, [answer]) == {"exact_match": float(right)}


def test_competition_math_by_equivalence():
    def answer(doc):
        return f"{doc['solution']}\nFinal Answer: The final answer is ${doc['answer']}$. I hope it is correct."

    assert set(accuracy("entrodrop_competition_math", answer).values()) == {1.0}
    wrong = "Final Answer: The final answer is $\\boxed{987}$. I hope it is correct."
    assert set(accuracy("entrodrop_competition_math", lambda doc: wrong).values()) == {0.0}


def test_competition_math_takes_other_forms_of_the_same_number():
    """The first problem's answer is 5/6."""
    for form, right in [("\\frac{10}{12}", 1.0), ("1-\\frac{1}{6}", 1.0), ("\\frac{6}{5}", 0.0)]:
        scores = accuracy("entrodrop_competition_math", lambda doc, form=form: f"$\\boxed{{{form}}}$", limit=1)
        assert scores["math_verify,none"] == right, form


@needs_sandbox
@pytest.mark.slow
def test_mbpp():
    assert accuracy("entrodrop_mbpp", lambda doc: doc["code"]) == {"pass@1,execute": 1.0}
    assert accuracy("entrodrop_mbpp", lambda doc: doc["code"].replace("return", "return 0,"), limit=30) == {
        "pass@1,execute": 0.0
    }


@needs_sandbox
def test_humaneval_through_the_task():
    assert accuracy("entrodrop_humaneval", lambda doc: doc["canonical_solution"], limit=8) == {"pass@1,execute": 1.0}
    assert accuracy("entrodrop_humaneval", lambda doc: "    return 'no'\n", limit=8) == {"pass@1,execute": 0.0}


@pytest.mark.parametrize(
    ("log_likelihoods", "gold", "expected"),
    [
        ([-2.0, -9.0], 0, {"acc": 1.0, "acc_norm": 0.0, "choice_margin": -2.0 / 2 + 9.0 / 18}),
        ([-2.0, -9.0], 1, {"acc": 0.0, "acc_norm": 1.0, "choice_margin": -9.0 / 18 + 2.0 / 2}),
    ],
)
def test_multiple_choice_scores(log_likelihoods, gold, expected):
    doc = {"options": ["no", "certainly and more"], "gold_index": gold}
    assert multiple_choice(doc, [(value, False) for value in log_likelihoods]) == pytest.approx(expected)
