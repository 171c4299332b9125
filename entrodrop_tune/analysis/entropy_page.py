"""An entropy profile as files: ``entropy.json``, ``entropy.html`` with coloured tokens, ``entropy.png``."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from entrodrop_tune.analysis import pages
from entrodrop_tune.analysis.entropy_figures import (
    draw_cdf,
    draw_classes,
    draw_gradient_share,
    draw_histogram,
    draw_over_training,
)
from entrodrop_tune.analysis.entropy_profile import Domain, Setting, describe
from entrodrop_tune.analysis.entropy_record import ENTROPY_FILE
from entrodrop_tune.analysis.gradient_share import SCOPES, share_below
from entrodrop_tune.analysis.model_source import Subject
from entrodrop_tune.analysis.runs import jsonable
from entrodrop_tune.analysis.style import house_style, save_png, svg
from entrodrop_tune.analysis.token_text import TokenText
from entrodrop_tune.training.journal import machine, versions

EDGES = (0.05, 0.2, 0.5, 1.0, 2.0, 3.5)  # nats, where the colour steps up
SHOWN_TOKENS = 400


def build_profile(
    subject: Subject,
    domains: Sequence[Domain],
    setting: Setting,
    gradients: Sequence[dict[str, Any]] = (),
    over_training: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Everything the page shows but the samples, as plain JSON values; ``gradients`` go with ``domains`` in order."""
    described = [describe(domain, setting) for domain in domains]
    for entry, gradient in zip(described, gradients, strict=False):
        entry["gradient"] = gradient
    return jsonable(
        {
            "schema": 1,
            "model": {"path": str(subject.source.path), "base": str(subject.source.base), "hash": subject.source.hash},
            "setting": {
                "quantile": setting.quantile,
                "nats": setting.nats,
                "drop_rate": setting.drop_rate,
                "seed": setting.seed,
                "epoch": setting.epoch,
                "quantile_shown": described[0]["setting"]["quantile"],
            },
            "domains": described,
            "over_training": list(over_training),
            "verdict": [_verdict(entry) for entry in described],
            "versions": versions(),
            "machine": machine(subject.world.device),
        }
    )


def _verdict(domain: dict[str, Any]) -> str:
    setting = domain["setting"]
    said = (
        f"{domain['name']}: {setting['quantile']:.0%} of the tokens have under {setting['threshold_nats']:.3f} nats "
        f"of entropy, and hold {setting['nll_share_below']:.1%} of the loss. "
        f"At a drop rate of {setting['drop_rate']:.2f}, "
        f"{setting['expected_dropped_fraction']:.0%} of all tokens are dropped."
    )
    if "gradient" in domain:
        gradient = domain["gradient"]
        scope = list(gradient["scopes"])[-1]
        before, after = (share_below(gradient, scope, when) for when in ("before", "after"))
        said += f" Tokens below the threshold give {before:.1%} of the gradient of the {SCOPES[scope]}"
        said += f", after masking {after:.1%}." if after is not None else "."
    return said


def write_profile(
    profile: dict[str, Any],
    subject: Subject,
    domains: Sequence[Domain],
    setting: Setting,
    output: Path,
    shown: int = 4,
) -> None:
    """Write the three files; the page shows the first ``shown`` samples of each domain."""
    output.mkdir(parents=True, exist_ok=True)
    (output / ENTROPY_FILE).write_text(json.dumps(profile, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    samples = [
        sample for domain in domains for sample in _shown_samples(domain, setting, TokenText(subject.tokenizer), shown)
    ]
    script, script_hash = pages.script("entropy.js")
    page = pages.render(
        "entropy.html.j2",
        profile=profile,
        figures=_figures(profile),
        samples=samples,
        edges=[*EDGES, "more"],
        script=script,
        script_hash=script_hash,
    )
    (output / "entropy.html").write_text(page, encoding="utf-8")
    _save_picture(profile, output / "entropy.png")


def _shown_samples(domain: Domain, setting: Setting, text: TokenText, count: int) -> list[dict[str, Any]]:
    threshold = setting.threshold(domain.tokens["entropy"])
    shown = []
    for number, rows in domain.tokens[domain.tokens["sample"] < count].groupby("sample"):
        pieces = text(domain.samples[int(number)].tokens)  # type: ignore[call-overload]
        tokens, last = [], int(rows["position"].iloc[0]) - 1
        for row in rows.head(SHOWN_TOKENS).to_dict("records"):
            below = row["entropy"] < threshold
            tokens.append(
                {
                    **row,
                    "gap": "".join(pieces[last + 1 : row["position"]]),
                    "shown": row["text"].replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣"),
                    "step": int(np.searchsorted(EDGES, row["entropy"], side="right")),
                    "below": below,
                    "dropped": below and row["coin"] < setting.drop_rate,
                }
            )
            last = row["position"]
        prompt = "".join(pieces[: int(rows["position"].iloc[0])])
        shown.append({"domain": domain.name, "number": int(number) + 1, "prompt": prompt, "tokens": tokens})  # type: ignore[call-overload]
    return shown


def _figures(profile: dict[str, Any]) -> dict[str, Any]:
    domains = profile["domains"]
    said = " ".join(profile["verdict"])
    drawings = [
        (
            "histogram",
            "Distribution",
            "Share of tokens by entropy, logarithmic.",
            draw_histogram,
            (4.9, 3.1),
        ),
        ("cdf", "Cumulative distribution", "Share of tokens below an entropy.", draw_cdf, (4.9, 3.1)),
        ("classes", "By token class", "Which kinds of token are easy.", draw_classes, (4.9, 3.8)),
    ]
    profile_figures = [
        pages.figure(title, caption, svg(partial(draw, domains=domains), name, f"{title}. {said}", size))
        for name, title, caption, draw, size in drawings
    ]
    return {"profile": profile_figures, "gradient": [*gradient_figures(profile), *training_figures(profile)]}


def gradient_figures(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """A figure a domain and scope whose gradient share the profile holds."""
    figures = []
    for index, domain in enumerate(profile["domains"]):
        for scope in domain.get("gradient", {}).get("scopes", {}):
            gradient = domain["gradient"]
            drawn = svg(
                partial(draw_gradient_share, result=gradient, scope=scope),
                f"gradient-{index}-{scope}",
                f"Gradient share by entropy range in {domain['name']}. " + " ".join(profile["verdict"]),
                (4.9, 3.6),
            )
            caption = f"{gradient['tokens']} tokens of {gradient['samples']} samples; entropy ranges in nats."
            title = f"{domain['name']}: {SCOPES[scope]}"
            figures.append(pages.figure(title, caption, drawn))
    return figures


def training_figures(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """How the shares moved over a run's checkpoints; none where the profile is of one model."""
    points = profile["over_training"]
    if len(points) < 2:
        return []
    drawn = svg(
        partial(draw_over_training, points=points), "over-training", "Shares below the threshold over training."
    )
    caption = "At each checkpoint: tokens under the untouched model's threshold, and what they hold."
    return [pages.figure("Over training", caption, drawn)]


def _save_picture(profile: dict[str, Any], path: Path) -> None:
    with house_style():
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        for axes, draw in zip(figure.subplots(1, 3), (draw_histogram, draw_cdf, draw_classes), strict=True):
            draw(axes, profile["domains"])
        save_png(figure, path)
