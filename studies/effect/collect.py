"""Gather finished runs into one JSON file each, with what their checkpoints still know of general text.

    python studies/effect/collect.py runs/effect/tiny studies/effect/results/tiny

Runs that have a file already are left alone. General text: Wikipedia pages, and held-out rows of every domain but the
one that the runs train on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import stored
from tqdm import tqdm

from entrodrop_tune.analysis.model_source import load_subject
from entrodrop_tune.analysis.runs import load_run
from entrodrop_tune.data import load_data
from entrodrop_tune.data.config import DataConfig
from entrodrop_tune.training.validation import score_samples

WIKIPEDIA = Path(__file__).parents[2] / "eval_tasks" / "samples" / "wikitext.jsonl"
GENERAL: dict[str, dict[str, Any]] = {
    "mathematics": {"path": "data/gsm8k/validation.jsonl", "limit": 24},
    "code": {"path": "data/mbpp/validation.jsonl", "limit": 32},
    "abstracts": {"path": "data/pubmedqa/validation.jsonl", "limit": 12},
    "wikipedia": {"path": str(WIKIPEDIA), "limit": 5, "columns": {"text": "page"}},
}
BATCH = 8


def general_nll(model: Path, domain: str) -> dict[str, float]:
    """Mean NLL in nats a target token on each set outside ``domain`` (first 1024 tokens of a row), fp32."""
    subject = load_subject(model, device="cpu")
    values = {}
    for name, source in GENERAL.items():
        if Path(source["path"]).parent.name == domain:
            continue
        config = DataConfig.model_validate(
            {"train": [source], "validation_fraction": 0, "max_length": 1024, "too_long": "truncate", "cache_dir": None}
        )
        samples = load_data(config, subject.tokenizer, progress=False, context=None).train
        scores = score_samples(
            subject.model, samples, BATCH, subject.world, subject.pad_id, lambda batches, total: batches
        )
        values[name] = float(np.concatenate([score.nll for score in scores]).mean())
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the folder of an `entrodrop sweep`")
    parser.add_argument("results", type=Path, help="where the JSON files go")
    parser.add_argument("--journals-only", action="store_true", help="leave out the general text (tuning runs)")
    parser.add_argument("--domain", default="gsm8k", help="what the runs train on")
    args = parser.parse_args()
    base: dict[str, dict[str, float]] = {}
    for log in tqdm(sorted((args.sweep / "runs").iterdir()), desc="runs"):
        target = args.results / f"{log.name}.json"
        run = load_run(log)
        if target.exists() or run.exit not in ("finished", "stopped_early"):
            continue
        general: dict[str, dict[str, float]] = {}
        if not args.journals_only:
            model = run.config["model"]["path"]
            if model not in base:
                base[model] = general_nll(Path(model), args.domain)
            trained = {which: general_nll(log / which, args.domain) for which in ("best", "last")}
            general = {"base": base[model], **trained}
        arm, _, _ = log.name.rpartition("-seed")
        stored.save(target, arm.replace("_", " "), run, general)
    print(json.dumps(base, indent=1))


if __name__ == "__main__":
    main()
