"""How predictable a domain's tokens are to a model: entropies by domain and token class, and what a threshold drops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from entrodrop_tune.analysis.model_source import Subject
from entrodrop_tune.analysis.token_class import CLASSES, classify
from entrodrop_tune.analysis.token_text import TokenText
from entrodrop_tune.data import DataConfig, Sample, load_data
from entrodrop_tune.data.sample import hash_order
from entrodrop_tune.errors import UserError
from entrodrop_tune.method import uniform_coins
from entrodrop_tune.training.validation import score_samples

SOURCES = {"train", "validation", "replay"}
QUANTILES = (0.1, 0.25, 0.5, 0.6, 0.75, 0.9)
HISTOGRAM_BINS = 60


@dataclass(frozen=True)
class Setting:
    """What would be dropped: tokens with entropy under a threshold, with probability ``drop_rate``.

    Exactly one of ``quantile`` (of the domain's own entropies) and ``nats`` is set. ``seed`` and ``epoch`` are the
    coins' (so the tokens struck out are those training would drop in that epoch).
    """

    quantile: float | None
    nats: float | None
    drop_rate: float
    seed: int = 0
    epoch: int = 0

    def threshold(self, entropy: pd.Series) -> float:
        """In nats."""
        return float(self.nats if self.nats is not None else entropy.quantile(self.quantile))


@dataclass(frozen=True)
class Domain:
    """One data set under a model.

    ``tokens`` has a row a target token: ``sample`` (index into ``samples``), ``position`` (of the token in its sample),
    ``text``, ``token_class``, ``entropy`` and ``nll`` (nats), ``correct``, ``coin`` (uniform in [0, 1)).
    """

    name: str
    samples: list[Sample]
    tokens: pd.DataFrame


def read_samples(path: Path, tokenizer: Any, limit: int, config: DataConfig | None = None) -> list[Sample]:
    """``limit`` samples of a data set (chosen by hash, so the same whatever the file's order).

    Args:
        path: a data file, or a folder with ``train.jsonl``.
        tokenizer: the model's.
        limit: at most so many samples.
        config: how rows become tokens (columns, template, length); its own data sources are not read.

    Raises:
        UserError: no such data, or none of it fits.
    """
    file = path / "train.jsonl" if (path / "train.jsonl").is_file() else path
    rules = (
        config.model_dump(exclude=SOURCES) if config else {"too_long": "skip", "bad_rows": "skip", "cache_dir": None}
    )
    chosen = DataConfig(**{**rules, "train": str(file), "validation_fraction": 0.0, "packing": False})
    samples = load_data(chosen, tokenizer, progress=False).train
    if not samples:
        raise UserError(f"{file} holds no usable row.")
    order = hash_order(np.array([sample.id for sample in samples], dtype=np.int64))
    return [samples[index] for index in order[:limit]]


def profile_domain(
    subject: Subject,
    name: str,
    samples: Sequence[Sample],
    setting: Setting,
    *,
    batch_size: int = 4,
    progress: Callable = lambda batches, total: batches,
) -> Domain:
    """Entropy and NLL of every target token of ``samples`` under the subject's model."""
    scores = score_samples(subject.model, samples, batch_size, subject.world, subject.pad_id, progress)
    text = TokenText(subject.tokenizer)
    frames = []
    for index, (sample, score) in enumerate(zip(samples, scores, strict=True)):
        pieces = text(sample.tokens)
        classes = classify(pieces, [int(token) in text.special_ids for token in sample.tokens])
        # A prediction made from position t is of the token at t + 1; its coin is that of position t.
        places = score.positions + 1
        ids = torch.full((len(places),), sample.id, dtype=torch.int64)
        coins = uniform_coins(setting.seed, setting.epoch, ids, torch.from_numpy(score.positions))
        frames.append(
            pd.DataFrame(
                {
                    "sample": index,
                    "position": places,
                    "text": [pieces[place] for place in places],
                    "token_class": [classes[place] for place in places],
                    "entropy": score.entropy,
                    "nll": score.nll,
                    "correct": score.correct,
                    "coin": coins.numpy(),
                }
            )
        )
    return Domain(name, list(samples), pd.concat(frames, ignore_index=True))


def describe(domain: Domain, setting: Setting) -> dict[str, Any]:
    """The numbers of one domain: quantiles, histogram, CDF, classes, thresholds, what the setting drops."""
    tokens = domain.tokens
    entropy, threshold = tokens["entropy"], setting.threshold(tokens["entropy"])
    below = entropy < threshold
    dropped = below & (tokens["coin"] < setting.drop_rate)
    counts, edges = np.histogram(entropy, bins=HISTOGRAM_BINS, range=(0, max(1e-6, float(entropy.max()))))
    levels = np.linspace(0, 1, 41)
    return {
        "name": domain.name,
        "samples": len(domain.samples),
        "tokens": len(tokens),
        "entropy_mean": float(entropy.mean()),
        "entropy_median": float(entropy.median()),
        "nll": float(tokens["nll"].mean()),
        "token_accuracy": float(tokens["correct"].mean()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "quantiles": {
            f"{level:.3f}": float(value) for level, value in zip(levels, entropy.quantile(levels), strict=True)
        },
        "classes": class_table(tokens, threshold, dropped).to_dict("records"),
        "thresholds": threshold_table(tokens, setting.drop_rate).to_dict("records"),
        "setting": {
            "threshold_nats": threshold,
            "quantile": float(below.mean()),
            "drop_rate": setting.drop_rate,
            "dropped_fraction": float(dropped.mean()),
            "expected_dropped_fraction": float(below.mean() * setting.drop_rate),
            "nll_share_below": _share(tokens["nll"], below),
        },
    }


def class_table(tokens: pd.DataFrame, threshold: float, dropped: pd.Series) -> pd.DataFrame:
    """A row a token class that occurs: how many, its entropies (nats), and how much of it would go."""
    marked = tokens.assign(below=tokens["entropy"] < threshold, dropped=dropped)
    rows = marked.groupby("token_class").agg(
        tokens=("entropy", "size"),
        entropy_mean=("entropy", "mean"),
        entropy_q25=("entropy", lambda values: values.quantile(0.25)),
        entropy_median=("entropy", "median"),
        entropy_q75=("entropy", lambda values: values.quantile(0.75)),
        nll=("nll", "mean"),
        accuracy=("correct", "mean"),
        below=("below", "mean"),
        dropped=("dropped", "mean"),
    )
    rows.insert(1, "share", rows["tokens"] / len(tokens))
    order = [name for name in CLASSES if name in rows.index]
    return rows.loc[order].reset_index()


def threshold_table(tokens: pd.DataFrame, drop_rate: float, quantiles: Sequence[float] = QUANTILES) -> pd.DataFrame:
    """A row a quantile: its threshold in nats, and what lies below it."""
    rows = []
    for quantile in quantiles:
        threshold = float(tokens["entropy"].quantile(quantile))
        below = tokens["entropy"] < threshold
        gone = tokens.loc[below, "token_class"].value_counts(normalize=True)
        rows.append(
            {
                "quantile": quantile,
                "nats": threshold,
                "tokens_below": float(below.mean()),
                "expected_dropped": float(below.mean() * drop_rate),
                "nll_share_below": _share(tokens["nll"], below),
                "accuracy_below": float(tokens.loc[below, "correct"].mean()) if below.any() else None,
                "nll_below": float(tokens.loc[below, "nll"].mean()) if below.any() else None,
                "mostly": [str(name) for name in gone.index[:3]],
            }
        )
    return pd.DataFrame(rows)


def _share(values: pd.Series, where: pd.Series) -> float:
    total = float(values.sum())
    return float(values[where].sum()) / total if total > 0 else 0.0
