"""The numbers that sum a run up: best, final, how far it degraded, how long training stayed useful."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from entrodrop_tune.analysis.runs import Run

DEGRADED = 0.01  # training stops being useful where validation NLL is 1% above its best


@dataclass(frozen=True)
class RunSummary:
    """Nats a token, epochs, tokens a second, bytes, seconds; None where the run did not log it."""

    start_nll: float | None
    best_nll: float | None
    best_epoch: float | None
    best_step: int | None
    final_nll: float | None
    final_epoch: float | None
    degradation: float | None
    """Final minus best validation NLL."""
    effective_epochs: float | None
    """Epochs until validation NLL is 1% above its best for good; the whole run where that never happens."""
    effective_censored: bool
    """True where validation ended within 1% of its best: the effective length is at least what is given."""
    best_token_accuracy: float | None
    final_train_nll: float | None
    kept_fraction: float | None
    """Share of target tokens that gave loss, over the whole run."""
    lowest_epoch_kept_fraction: float | None
    steps: int
    tokens: float | None
    tokens_per_second: float | None
    peak_memory_bytes: float | None
    train_seconds: float | None
    """In optimizer steps, without validation and saving."""
    seconds_to_best: float | None
    """The part of ``train_seconds`` up to the best validation."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(run: Run) -> RunSummary:
    """The numbers of ``run``; an empty run has none."""
    metrics, validation = run.metrics, run.validation.dropna(subset=["nll"])
    best = validation.loc[validation["nll"].idxmin()] if len(validation) else None
    last = validation.iloc[-1] if len(validation) else None
    untouched = validation[validation["step"] == 0]
    length, censored = effective_length(validation)
    by_epoch = epoch_means(metrics)
    seconds = metrics["tokens"] / metrics["tokens_per_second"]
    return RunSummary(
        start_nll=_number(untouched["nll"].iloc[0]) if len(untouched) else None,
        best_nll=_number(best["nll"]) if best is not None else None,
        best_epoch=_number(best["epoch"]) if best is not None else None,
        best_step=int(best["step"]) if best is not None else None,
        final_nll=_number(last["nll"]) if last is not None else None,
        final_epoch=_number(last["epoch"]) if last is not None else None,
        degradation=_number(last["nll"] - best["nll"]) if best is not None and last is not None else None,
        effective_epochs=length,
        effective_censored=censored,
        best_token_accuracy=_number(best["token_accuracy"]) if best is not None else None,
        final_train_nll=_number(by_epoch["nll_all"].iloc[-1]) if len(by_epoch) else None,
        kept_fraction=_number(_weighted(metrics["kept_fraction"].to_numpy(), metrics["tokens"].to_numpy())),
        lowest_epoch_kept_fraction=_number(by_epoch["kept_fraction"].min()) if len(by_epoch) else None,
        steps=int(metrics["step"].max()) if len(metrics) else 0,
        tokens=_number(metrics["tokens"].sum()) if len(metrics) else None,
        tokens_per_second=_number(metrics["tokens_per_second"].median()),
        peak_memory_bytes=_number(metrics["peak_memory_bytes"].max()),
        train_seconds=_number(seconds.sum()) if len(metrics) else None,
        seconds_to_best=_number(seconds[metrics["step"] <= best["step"]].sum()) if best is not None else None,
    )


def effective_length(validation: pd.DataFrame, margin: float = DEGRADED) -> tuple[float | None, bool]:
    """Epochs until validation NLL is ``margin`` above its best and stays there; linear between validations.

    Returns the length and whether it is censored (the run ended before that happened).
    """
    rows = validation.dropna(subset=["nll", "epoch"])
    if not len(rows):
        return None, False
    nll, epoch = rows["nll"].to_numpy(), rows["epoch"].to_numpy()
    limit = nll.min() * (1 + margin)
    last = int(np.flatnonzero(nll <= limit)[-1])
    if last == len(nll) - 1:
        return float(epoch[-1]), True
    share = (limit - nll[last]) / (nll[last + 1] - nll[last])
    return float(epoch[last] + share * (epoch[last + 1] - epoch[last])), False


def epoch_means(metrics: pd.DataFrame) -> pd.DataFrame:
    """A row an epoch (index 1, 2, ...): token-weighted means of the per-step columns."""
    columns = ["loss", "nll_all", "kept_fraction", "entropy_mean", "threshold", "drop_rate", "grad_norm"]
    if not len(metrics):
        return pd.DataFrame(columns=columns)
    # `epoch` is progress after the step, so the last step of epoch 1 says 1.0.
    epoch = np.maximum(1, np.ceil(metrics["epoch"].fillna(0).to_numpy() - 1e-9)).astype(int)
    arrays = {column: metrics[column].to_numpy() for column in (*columns, "tokens")}
    rows = {
        number: {column: _weighted(arrays[column][at], arrays["tokens"][at]) for column in columns}
        for number in np.unique(epoch)
        for at in [epoch == number]
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def _weighted(values: np.ndarray, weights: np.ndarray) -> float:
    """Mean of the finite ``values``, weighted where there are weights; NaN if there is none."""
    known = np.isfinite(values)
    values, weights = values[known], np.nan_to_num(weights[known])
    if not len(values):
        return math.nan
    return float(np.average(values, weights=weights if weights.sum() > 0 else None))


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


def verdict(name: str, summary: RunSummary) -> str:
    """One or two sentences on the validation curve, in plain words."""
    if summary.best_nll is None or summary.final_nll is None:
        return f"{name} has no validation yet."
    best = f"{summary.best_nll:.3f} nats/token at epoch {_short(summary.best_epoch)}"
    if summary.start_nll is None:
        first = f"Validation NLL reached {best}."
    elif summary.best_step == 0:
        return f"Training never improved validation NLL: the untouched model's {summary.start_nll:.3f} is the best."
    else:
        change = 1 - math.exp(summary.best_nll - summary.start_nll)
        first = f"Validation NLL fell from {summary.start_nll:.3f} to {best} ({change:.0%} lower perplexity)."
    return first + " " + _after_best(summary)


def _after_best(summary: RunSummary) -> str:
    if summary.degradation is None or summary.final_nll is None or summary.best_nll is None:
        return ""
    if summary.degradation <= 1e-9:
        return "It was still falling at the last validation: more epochs may help."
    if summary.effective_censored:
        return f"It then stayed within {DEGRADED:.0%} of its best to the end (epoch {_short(summary.final_epoch)})."
    return (
        f"It then rose by {summary.degradation:.3f} to {summary.final_nll:.3f} at epoch {_short(summary.final_epoch)}; "
        f"training was useful for about {_short(summary.effective_epochs)} epochs, so use the best checkpoint."
    )


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}".removesuffix(".0")
