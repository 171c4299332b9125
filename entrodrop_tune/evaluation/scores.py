"""Per-item scores behind the tasks' ``process_results``: answer likelihood, choice margin, equal numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def answer_likelihood(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Scores of the log-likelihood (nats) of ``doc["reference"]``, the task's target.

    Returns:
        ``bits_per_byte``: (log-likelihood, UTF-8 bytes), which lm-eval's aggregation of that name sums before it
        divides; comparable between tokenizers. ``answer_nll``: nats an answer.
    """
    log_likelihood = float(results[0][0])
    return {
        "bits_per_byte": (log_likelihood, len(doc["reference"].encode())),
        "answer_nll": -log_likelihood,
    }


def multiple_choice(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Accuracy as lm-eval counts it, and by how much the right choice leads.

    Returns:
        ``acc``: the most likely choice is right. ``acc_norm``: the same after division by the choice's characters.
        ``choice_margin``: log-likelihood a byte of the right choice minus that of the best wrong one (nats a byte).
    """
    options, gold = doc["options"], int(doc["gold_index"])
    log_likelihoods = np.array([float(score) for score, _ in results])
    characters = np.array([float(len(option)) for option in options])
    per_byte = log_likelihoods / np.array([float(len(option.encode())) for option in options])
    return {
        "acc": float(np.argmax(log_likelihoods) == gold),
        "acc_norm": float(np.argmax(log_likelihoods / characters) == gold),
        "choice_margin": float(per_byte[gold] - np.delete(per_byte, gold).max()),
    }


def letter_choice(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """``multiple_choice`` where all choices are single letters, so that ``acc_norm`` would repeat ``acc``."""
    scores = multiple_choice(doc, results)
    return {name: scores[name] for name in ("acc", "choice_margin")}


def numeric_match(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """``exact_match``: the number extracted from the answer equals ``doc["Answer"]`` as a number (8 is 8.0)."""
    return {"exact_match": float(_number(results[0]) == _number(doc["Answer"]))}


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").replace("$", "").rstrip("."))
    except ValueError:
        return None
