"""Run and evaluation folders as training and evaluation write them, made from formulas in milliseconds."""

import json
import math
from pathlib import Path

import numpy as np

from entrodrop_tune.evaluation.results import EvalResults, Item, MetricSummary, ModelRecord, TaskSummary, save_results

STEPS_PER_EPOCH = 12


def make_run(
    path: Path,
    *,
    epochs: int = 8,
    seed: int = 0,
    best: float = 0.88,
    best_epoch: float = 2.0,
    rise: float = 0.10,
    drop_rate=lambda progress: 0.8 * (1 - progress),
    threshold=lambda progress: 0.45 * math.exp(-0.8 * progress),
    low_rise: float = 0.0,
    stop_at: float = 1.0,
    exit_state: str = "finished",
    config: dict | None = None,
    recipe: str = "lora_finetune",
    noise: float = 0.004,
    **info,
) -> Path:
    """A plausible run: validation NLL falls from 1.475 to ``best`` at ``best_epoch``, then rises ``rise`` an epoch."""
    random = np.random.default_rng(seed)
    path.mkdir(parents=True)
    total = epochs * STEPS_PER_EPOCH
    done = int(total * stop_at)

    def validation_nll(epoch: float) -> float:
        fall = (1.475 - best) * math.exp(-4 * epoch / best_epoch) + best
        return fall + rise * max(0.0, epoch - best_epoch)

    metrics = []
    for step in range(1, done + 1):
        epoch, progress = step / STEPS_PER_EPOCH, step / total
        rate = drop_rate(progress)
        nll = 1.4 * math.exp(-0.35 * epoch) + 0.05 + random.normal(0, 0.03)
        metrics.append(
            {
                "step": step,
                "epoch": epoch,
                "loss": nll * (1 + 0.5 * rate),
                "nll_all": nll,
                "kept_fraction": 1 - 0.5 * rate + random.normal(0, 0.01),
                "entropy_mean": 1.1 * math.exp(-0.1 * epoch) + random.normal(0, 0.02),
                "threshold": threshold(progress),
                "drop_rate": rate,
                "lr": 1e-4 * (1 - progress),
                "tokens": 1000 + int(random.integers(0, 50)),
                "tokens_per_second": 210 + random.normal(0, 5),
                "peak_memory_bytes": 2_400_000_000,
                "grad_norm": 1.2 + abs(random.normal(0, 0.2)),
            }
        )
    validations = []
    for epoch in range(int(epochs * stop_at) + 1):
        nll = validation_nll(epoch) + (random.normal(0, noise) if epoch else 0)
        validations.append(
            {
                "step": epoch * STEPS_PER_EPOCH,
                "epoch": float(epoch),
                "nll": nll,
                "perplexity": math.exp(nll),
                "token_accuracy": 0.78 - 0.1 * nll,
                "nll_low_entropy": 0.3 * math.exp(-epoch) + 0.1 + low_rise * max(0.0, epoch - best_epoch),
                "nll_high_entropy": 2 * nll - 0.3 * math.exp(-epoch) - 0.1,
                "tokens": 5200,
                "seconds": 6.1,
                "entropy_mean": 1.15 * math.exp(-0.09 * epoch),
            }
        )
    _write_jsonl(path / "metrics.jsonl", metrics)
    _write_jsonl(path / "validation.jsonl", validations)
    run = {
        "schema": 1,
        "recipe": recipe,
        "config": config
        or {
            "model": {"path": "models/smollm2"},
            "data": {"train": "data/gsm8k/train.jsonl"},
            "seed": seed,
            "epochs": epochs,
            "output_dir": str(path),
        },
        "versions": {"entrodrop_tune": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "machine": {"cpu": "a processor", "cores": 2, "device": "cpu"},
        "world_size": 1,
        "data": {"rows": 48, "tokens": 9100, "train_sha256": "c0ffee" * 8},
        "parameters": {"total": 134_515_008, "trainable": 1_843_200},
        "steps_per_epoch": STEPS_PER_EPOCH,
        "total_steps": total,
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:12:45+00:00" if exit_state == "finished" else None,
        "exit": exit_state,
        "summary": {},
        **info,
    }
    (path / "run.json").write_text(json.dumps(run))
    return path


def make_evaluation(path: Path, *, gain: float = 0.0, n: int = 40, seed: int = 0) -> Path:
    """An evaluation of four tasks; ``gain`` is added to the chance that a math item is right."""
    rng = np.random.default_rng(7)  # the same items are hard in every evaluation
    flips = np.random.default_rng(seed + 100)
    tasks, items = {}, []
    for task, group, metric, higher in (
        ("entrodrop_gsm8k", "math", "exact_match", True),
        ("entrodrop_gsm8k_nll", "math", "bits_per_byte", False),
        ("entrodrop_mbpp", "code", "pass@1", True),
        ("entrodrop_hellaswag", "general", "acc_norm", True),
    ):
        difficulty, values = rng.random(n), []
        for doc in range(n):
            skill = 0.35 + (gain if group == "math" else 0)
            right = float(difficulty[doc] + flips.normal(0, 0.03) < skill)
            values.append(right if higher else 1.4 - gain + difficulty[doc] + flips.normal(0, 0.05))
            generated = {"prediction": f"The answer is <b>{int(right) * doc}</b>.\n#### {doc}", "target": str(doc)}
            items.append(
                Item(
                    task=task,
                    doc_id=doc,
                    doc_hash=f"{task}-{doc}",
                    metrics={metric: values[-1]},
                    **(generated if task in ("entrodrop_gsm8k", "entrodrop_mbpp") else {}),
                )
            )
        mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(n))
        summary = MetricSummary(
            value=mean, ci_low=mean - 1.96 * error, ci_high=mean + 1.96 * error, n=n, higher_is_better=higher,
            chance=0.25 if metric == "acc_norm" else None,
        )  # fmt: skip
        tasks[task] = TaskSummary(
            group=group, version="1", n=n, num_fewshot=0, chat_template=True, primary=metric,
            data={"sha256": "c0ffee"}, seconds=1.0, metrics={metric: summary},
        )  # fmt: skip
    model = ModelRecord(path=path.name, base="smollm2", adapter=None, hash="beef", parameters=134_515_008)
    results = EvalResults(
        schema=1, model=model, suite="quick", settings={"seed": 0}, versions={"lm_eval": "0.4.13"},
        machine={"cpu_count": 2}, started="2026-01-02T03:04:05+00:00", seconds=4.0, tasks=tasks, items=items,
    )  # fmt: skip
    save_results(results, path)
    return path


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
