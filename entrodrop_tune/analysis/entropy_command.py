"""The whole of ``entrodrop entropy``: models in, data in, profile and files out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from entrodrop_tune.analysis.entropy_page import build_profile, write_profile
from entrodrop_tune.analysis.entropy_profile import Domain, Setting, profile_domain, read_samples
from entrodrop_tune.analysis.gradient_share import Scope, gradient_share, share_below
from entrodrop_tune.analysis.model_source import Subject, load_subject
from entrodrop_tune.analysis.runs import is_run_folder, load_run
from entrodrop_tune.data import DataConfig
from entrodrop_tune.errors import UserError

GRADIENT_SCOPES: dict[str, tuple[Scope, ...]] = {
    "none": (),
    "head": ("hidden", "head"),
    "model": ("hidden", "head", "model"),
}


def analyse(
    model: Path,
    data: Sequence[Path],
    setting: Setting,
    *,
    data_config: DataConfig | None,
    samples: int,
    gradient: str,
    gradient_samples: int,
    device: str,
    dtype: str,
    output: Path,
) -> dict[str, Any]:
    """Profile each data set under ``model``, write the files into ``output``, return the profile.

    Raises:
        UserError: a model or data set that is not there or cannot be used.
    """
    names = [path.stem if path.is_file() else path.resolve().name for path in data]
    if len(set(names)) != len(names):
        raise UserError(f"data sets need names that differ, got {', '.join(names)}.")
    checkpoints = _checkpoints(model)
    subject = load_subject(checkpoints[0][1], device=device, dtype=dtype)
    domains = [
        profile_domain(
            subject,
            name,
            read_samples(path, subject.tokenizer, samples, data_config),
            setting,
            progress=_bar(f"{name}: entropies"),
        )
        for name, path in zip(names, data, strict=True)
    ]
    scopes = GRADIENT_SCOPES[gradient]
    gradients = [
        gradient_share(
            subject,
            domain,
            setting,
            samples=gradient_samples,
            scopes=scopes,
            progress=_bar(f"{domain.name}: gradients"),
        )
        for domain in (domains if scopes else [])
    ]
    over_training = _over_training(checkpoints, domains[0], setting, gradient_samples, device, dtype)
    profile = build_profile(subject, domains, setting, gradients, over_training)
    write_profile(profile, subject, domains, setting, output)
    return profile


def _bar(title: str) -> Callable:
    return lambda items, total: tqdm(items, total=total, desc=title, leave=False)


def _checkpoints(model: Path) -> list[tuple[float, Path]]:
    """(epoch, model directory): one for a model, the base model and every kept checkpoint for a run's folder."""
    if not is_run_folder(model):
        return [(0.0, model)]
    run = load_run(model)
    per_epoch = run.info.get("steps_per_epoch") or 1
    kept = sorted((int(p.name.removeprefix("step_")), p) for p in (model / "checkpoints").glob("step_*") if p.is_dir())
    base = run.config.get("model", {}).get("path")
    if base is None:
        raise UserError(f"{model / 'run.json'} names no model.path.")
    return [(0.0, Path(base)), *((step / per_epoch, path) for step, path in kept)]


def _over_training(
    checkpoints: Sequence[tuple[float, Path]],
    first: Domain,
    setting: Setting,
    samples: int,
    device: str,
    dtype: str,
) -> list[dict[str, Any]]:
    """Below the untouched model's threshold in nats, at each checkpoint: shares of tokens, NLL and gradient."""
    if len(checkpoints) < 2:
        return []
    threshold = setting.threshold(first.tokens["entropy"])
    fixed = Setting(None, threshold, setting.drop_rate, setting.seed, setting.epoch)
    points = []
    for epoch, path in tqdm(checkpoints, desc="checkpoints", leave=False):
        subject = load_subject(path, device=device, dtype=dtype)
        points.append({"epoch": epoch, **_point(subject, first, fixed, samples)})
    return points


def _point(subject: Subject, first: Domain, fixed: Setting, samples: int) -> dict[str, Any]:
    domain = profile_domain(subject, first.name, first.samples[:samples], fixed)
    tokens = domain.tokens
    below = tokens["entropy"] < fixed.threshold(tokens["entropy"])
    gradient = gradient_share(subject, domain, fixed, samples=samples, scopes=("head",))
    return {
        "entropy_mean": float(tokens["entropy"].mean()),
        "entropy_median": float(tokens["entropy"].median()),
        "nll": float(tokens["nll"].mean()),
        "token_share_below": float(below.mean()),
        "nll_share_below": float(tokens["nll"][below].sum() / tokens["nll"].sum()),
        "gradient_share_below": share_below(gradient, "head", "before"),
    }
