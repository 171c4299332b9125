"""Signs in a run's curves that something went wrong, each with what it means and what to change.

Limits are rules of thumb, named here so that they can be argued with; each warning says the number that crossed it.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from entrodrop_tune.analysis.runs import Run
from entrodrop_tune.analysis.summary import RunSummary, epoch_means, summarize
from entrodrop_tune.method.curriculum import Curriculum

KEPT_TOO_LOW = 0.3
"""Below this share of tokens kept, over an epoch, most of each batch's compute teaches nothing."""
GRAMMAR_LOSS = 0.05
"""Nats by which validation NLL of low-entropy tokens may rise above its lowest."""
THRESHOLD_DRIFT = 0.5
"""Relative change of threshold over mean entropy, where the setting does not change."""
QUANTILE_MISS = 0.15
"""Difference between the share of tokens that lay below the threshold and the quantile asked for."""
OVERFIT = 0.05
"""Final over best validation NLL, relative."""
GRADIENT_SPIKE = 10.0
"""Largest gradient norm over the median."""


@dataclass(frozen=True)
class Finding:
    code: str
    severity: Literal["problem", "caution"]
    title: str
    detail: str
    advice: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_problems(run: Run) -> list[Finding]:
    """Every warning that a run's folder gives reason for, problems first."""
    summary = summarize(run)
    findings = [finding for check in CHECKS if (finding := check(run, summary)) is not None]
    return sorted(findings, key=lambda finding: finding.severity != "problem")


def unfinished(run: Run, summary: RunSummary) -> Finding | None:
    """The run was interrupted or failed."""
    if run.exit not in {"failed", "interrupted"}:
        return None
    total = run.info.get("total_steps")
    return Finding(
        code="unfinished",
        severity="problem",
        title=f"The run was {run.exit}" if run.exit == "interrupted" else "The run failed",
        detail=f"It made {summary.steps} of {total or 'an unknown number of'} steps; what follows is up to there.",
        advice="Start the same command again with resume=true: it goes on from the last checkpoint.",
    )


def not_finite(run: Run, summary: RunSummary) -> Finding | None:
    """Steps whose training loss is NaN or infinite."""
    # A missing value is not a failure; a step that logged tokens but no finite loss is.
    bad = run.metrics[(run.metrics["tokens"] > 0) & ~run.metrics["nll_all"].map(math.isfinite)]
    if not len(bad):
        return None
    return Finding(
        code="not_finite",
        severity="problem",
        title="The training loss was not finite",
        detail=f"In {len(bad)} of {len(run.metrics)} steps, first at step {int(bad['step'].iloc[0])}.",
        advice="Lower the learning rate, clip gradients, or train with dtype=fp32.",
    )


def nothing_kept(run: Run, summary: RunSummary) -> Finding | None:
    """Steps in which every token was dropped."""
    empty = run.metrics[run.metrics["kept_fraction"] == 0]
    if not len(empty):
        return None
    return Finding(
        code="nothing_kept",
        severity="problem",
        title="Some steps dropped every token",
        detail=f"{len(empty)} of {len(run.metrics)} steps updated nothing, first at step {int(empty['step'].iloc[0])}.",
        advice="Lower the drop rate or the threshold, or use larger batches.",
    )


def kept_too_low(run: Run, summary: RunSummary) -> Finding | None:
    """An epoch that kept less than :data:`KEPT_TOO_LOW` of its target tokens."""
    lowest = summary.lowest_epoch_kept_fraction
    if lowest is None or lowest >= KEPT_TOO_LOW:
        return None
    epoch = int(epoch_means(run.metrics)["kept_fraction"].idxmin())
    return Finding(
        code="kept_too_low",
        severity="caution",
        title="Few tokens were kept",
        detail=f"In epoch {epoch} only {lowest:.0%} of the target tokens gave loss (limit {KEPT_TOO_LOW:.0%}).",
        advice="Lower the drop rate or the threshold quantile, or compare against random dropping at the same rate.",
    )


def grammar_loss(run: Run, summary: RunSummary) -> Finding | None:
    """Validation NLL of the low-entropy half ends more than :data:`GRAMMAR_LOSS` above its lowest."""
    rows = run.validation.dropna(subset=["nll_low_entropy"])
    if len(rows) < 2:
        return None
    lowest = rows.loc[rows["nll_low_entropy"].idxmin()]
    rise = rows["nll_low_entropy"].iloc[-1] - lowest["nll_low_entropy"]
    if rise <= GRAMMAR_LOSS:
        return None
    start = rows["nll_low_entropy"].iloc[0]
    worse = rows["nll_low_entropy"].iloc[-1] > start
    return Finding(
        code="grammar_loss",
        severity="problem" if worse else "caution",
        title="Easy tokens are getting worse on validation",
        detail=(
            f"NLL of the low-entropy half rose by {rise:.3f} nats after epoch {lowest['epoch']:.3g} (limit "
            f"{GRAMMAR_LOSS}){', and ended above the untouched model' if worse else ''}: signs of lost grammar."
        ),
        advice="Drop fewer low-entropy tokens late in training (lower rate, easing curriculum), or stop earlier.",
    )


def threshold_drift(run: Run, summary: RunSummary) -> Finding | None:
    """Threshold over mean entropy moved by more than :data:`THRESHOLD_DRIFT` at an unchanged setting."""
    curriculum = curriculum_of(run)
    if curriculum is not None and len(set(curriculum.threshold.values())) > 1:
        return None  # it moves on purpose
    rows = run.metrics.dropna(subset=["threshold", "entropy_mean"])
    if len(rows) < 8:
        return None
    # Entropies fall as a model learns, and a quantile falls with them; what should not move much is their ratio.
    # The first tenth is left out: an online estimate starts from few tokens.
    ratio = (rows["threshold"] / rows["entropy_mean"]).iloc[len(rows) // 10 :]
    early, late = (part.median() for part in _ends(ratio))
    if early <= 0 or abs(late / early - 1) <= THRESHOLD_DRIFT:
        return None
    entropy = rows["entropy_mean"]
    return Finding(
        code="threshold_drift",
        severity="caution",
        title="The threshold drifted away from the entropies",
        detail=(
            f"It went from {early:.2f} to {late:.2f} times the mean entropy ({late / early - 1:+.0%}) while the mean "
            f"entropy went from {entropy.iloc[0]:.3f} to {entropy.iloc[-1]:.3f} nats, at an unchanged setting."
        ),
        advice=(
            "A threshold in nats catches more tokens as entropies fall: use a quantile. With a quantile, it says that "
            "the easy tokens have become far easier than the rest: `entrodrop entropy` on a checkpoint shows which."
        ),
    )


def _ends(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    width = max(1, len(values) // 10)
    return values.iloc[:width], values.iloc[-width:]


def quantile_missed(run: Run, summary: RunSummary) -> Finding | None:
    """The share of tokens below the threshold is not the quantile that was asked for."""
    curriculum, section = curriculum_of(run), run.config.get("entrodrop") or {}
    if (
        curriculum is None
        or curriculum.unit != "quantile"
        or section.get("select", "entropy") not in ("entropy", "fitted", "loss")
    ):
        return None
    if section.get("site", "loss") != "loss":
        return None  # the loss keeps every token there
    rows = run.metrics[run.metrics["drop_rate"] > 0.1].dropna(subset=["kept_fraction", "tokens"])
    rows = rows.iloc[-max(1, len(rows) // 4) :]
    if len(rows) < 4:
        return None
    dropped = ((1 - rows["kept_fraction"]) * rows["tokens"]).sum()
    share = dropped / (rows["drop_rate"] * rows["tokens"]).sum()
    wanted = curriculum.at(summary.steps / max(1, run.info.get("total_steps") or summary.steps)).threshold
    if abs(share - wanted) <= QUANTILE_MISS:
        return None
    return Finding(
        code="quantile_missed",
        severity="caution",
        title="The threshold estimate lags behind the model",
        detail=(
            f"Late in the run {share:.0%} of the tokens lay below it, where the quantile asks for {wanted:.0%}: "
            "entropies move faster than the running estimate."
        ),
        advice="Lower the learning rate, or read the threshold in nats off `entrodrop entropy` and set threshold.nats.",
    )


def curriculum_of(run: Run) -> Curriculum | None:
    """The run's curriculum; None where its config names none (or names one of another version)."""
    section = run.config.get("entrodrop") or {}
    parts = {key: section[key] for key in ("preset", "threshold", "drop_rate", "per") if section.get(key) is not None}
    try:
        return Curriculum.from_config(parts)
    except ValueError:
        return None


def curriculum_cut_short(run: Run, summary: RunSummary) -> Finding | None:
    """The run ended before its planned steps while the drop rate was still on its way."""
    total = run.info.get("total_steps")
    if not total or run.exit == "running" or summary.steps >= total:
        return None
    if (run.config.get("entrodrop") or {}).get("full_at_gap") is not None:
        return None  # the gap decides there, not the clock
    rate = run.metrics["drop_rate"].dropna()
    if rate.nunique() < 2:
        return None
    curriculum = curriculum_of(run)
    planned = f" of a planned {curriculum.at(1.0).drop_rate:.2f}" if curriculum else ""
    return Finding(
        code="curriculum_cut_short",
        severity="caution",
        title="The curriculum never reached its end",
        detail=(
            f"The run ended at step {summary.steps} of {total} ({summary.steps / total:.0%}) with the drop rate at "
            f"{rate.iloc[-1]:.2f}{planned}, having started at {rate.iloc[0]:.2f}."
        ),
        advice="Plan as many epochs as the run really lasts, so that the curriculum ends where training does.",
    )


def overfitting(run: Run, summary: RunSummary) -> Finding | None:
    """The final validation NLL is more than :data:`OVERFIT` above the best."""
    if summary.best_nll is None or summary.degradation is None or summary.degradation <= OVERFIT * summary.best_nll:
        return None
    return Finding(
        code="overfitting",
        severity="caution",
        title="The run went on well past its best epoch",
        detail=(
            f"Validation NLL ended {summary.degradation / summary.best_nll:.0%} above its best "
            f"(epoch {summary.best_epoch:.3g} of {summary.final_epoch:.3g})."
        ),
        advice="Evaluate and ship the best checkpoint, train for fewer epochs, drop more, or lower the learning rate.",
    )


def gradient_spike(run: Run, summary: RunSummary) -> Finding | None:
    """The largest gradient norm is more than :data:`GRADIENT_SPIKE` times the median."""
    norm = run.metrics["grad_norm"].dropna()
    if len(norm) < 8 or norm.median() <= 0 or norm.max() <= GRADIENT_SPIKE * norm.median():
        return None
    step = int(run.metrics.loc[norm.idxmax(), "step"])
    return Finding(
        code="gradient_spike",
        severity="caution",
        title="The gradient norm spiked",
        detail=f"At step {step} it was {norm.max():.3g}, {norm.max() / norm.median():.0f} times the median.",
        advice="Clip gradients or lower the learning rate.",
    )


CHECKS: tuple[Callable[[Run, RunSummary], Finding | None], ...] = (
    unfinished,
    not_finite,
    nothing_kept,
    kept_too_low,
    grammar_loss,
    threshold_drift,
    quantile_missed,
    curriculum_cut_short,
    overfitting,
    gradient_spike,
)
