"""Ready-made training sets: small bundled samples, or the full sets from the Hugging Face hub."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tqdm import tqdm

from entrodrop_tune.errors import UserError, did_you_mean
from entrodrop_tune.files import new_folder

RECORD = "source.json"
"""In every prepared folder: where its rows come from, under which licence."""


@dataclass(frozen=True)
class DatasetCard:
    """Where a data set comes from."""

    title: str
    licence: str
    source: str
    note: str
    files: tuple[str, ...] = ("train.jsonl", "validation.jsonl")
    hub: tuple[str, str | None, dict[str, str]] | None = None
    """Hub id, configuration, and which split makes which file."""
    convert: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda row: row
    """Hub row to ours; ``None`` leaves it out."""


def mbpp_row(row: dict[str, Any]) -> dict[str, Any]:
    """MBPP row → the request of the ``entrodrop_mbpp_chat`` task and the reference program in a code block."""
    tests = "\n".join(row["test_list"])
    return {
        "task_id": row["task_id"],
        "prompt": "You are an expert Python programmer, and here is your task: "
        f"{row['text']} Your code should pass these tests:\n\n{tests}",
        "response": f"```python\n{row['code'].replace(chr(13), '').strip()}\n```",
    }


def pubmedqa_row(row: dict[str, Any]) -> dict[str, Any]:
    """PubMedQA row → the request of the ``entrodrop_pubmedqa`` task, the decision and the abstract's conclusion."""
    abstract = "\n".join(row["contexts"])
    return {
        "id": row["id"],
        "prompt": f"Abstract: {abstract}\nQuestion: {row['question']}\nAnswer:",
        "response": f"{row['final_decision']}. {row['long_answer']}",
    }


def _pubmedqa_from_hub(row: dict[str, Any]) -> dict[str, Any] | None:
    # The hub has all 1,000 labelled rows in one split; half of them are the official test set.
    if str(row["pubid"]) not in _pubmedqa_train_ids():
        return None
    return pubmedqa_row({**row, "id": str(row["pubid"]), "contexts": row["context"]["contexts"]})


def _pubmedqa_train_ids() -> frozenset[str]:
    return frozenset((_samples() / "pubmedqa" / "train_ids.txt").read_text().split())


DATASETS = {
    "gsm8k": DatasetCard(
        title="GSM8K: grade-school mathematics (Cobbe et al. 2021)",
        licence="MIT",
        source="https://github.com/openai/grade-school-math",
        note="128 training and 48 validation rows of the training split; none shares 13 words in a row with the test.",
        hub=("openai/gsm8k", "main", {"train": "train.jsonl"}),
    ),
    "mbpp": DatasetCard(
        title="MBPP: basic Python programming (Austin et al. 2021)",
        licence="CC BY 4.0",
        source="https://github.com/google-research/google-research/tree/master/mbpp",
        note="The whole training and validation splits, less the tasks whose text is identical to one of the test.",
        hub=(
            "google-research-datasets/mbpp",
            "full",
            {"train": "train.jsonl", "validation": "validation.jsonl"},
        ),
        convert=mbpp_row,
    ),
    "pubmedqa": DatasetCard(
        title="PubMedQA, expert-labelled (Jin et al. 2019)",
        licence="MIT",
        source="https://github.com/pubmedqa/pubmedqa",
        note="60 training and 24 validation rows outside the official test set.",
        hub=("qiaojin/PubMedQA", "pqa_labeled", {"train": "train.jsonl"}),
        convert=_pubmedqa_from_hub,
    ),
    "replay": DatasetCard(
        title="General instructions for replay: P3 (Sanh et al. 2021) and Self-Instruct seeds (Wang et al. 2022)",
        licence="Apache-2.0",
        source="https://github.com/bigscience-workshop/promptsource, https://github.com/yizhongw/self-instruct",
        note="200 rows of P3 and the 175 seed tasks.",
        files=("train.jsonl",),
    ),
}


@dataclass(frozen=True)
class Prepared:
    """A data folder that is ready to be named in a config."""

    name: str
    path: Path
    rows: dict[str, int]
    licence: str
    source: str
    note: str
    reused: bool


def prepare_dataset(name: str, output: Path, from_hub: bool = False, progress: bool = True) -> Prepared:
    """Write the data set ``name`` into the folder ``output``; a folder that holds it already is left as it is.

    Raises:
        UserError: unknown name, an unrelated folder in the way, or the hub is out of reach.
    """
    if name not in DATASETS:
        raise UserError(f'unknown data set "{name}".{did_you_mean(name, DATASETS)}')
    card = DATASETS[name]
    record = {"name": name, "origin": "hub copy" if from_hub else "bundled sample"}
    if output.is_dir() and any(output.iterdir()):
        return _reuse(card, output, record)
    with new_folder(output) as folder:
        if from_hub:
            _write_from_hub(name, card, folder, progress)
        else:
            for file in card.files:
                shutil.copyfile(str(_samples() / name / file), folder / file)
        record |= {"title": card.title, "licence": card.licence, "source": card.source, "note": card.note}
        if from_hub:
            record["note"] = "Full splits from the hub."
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return _describe(card, output, record, reused=False)


def _samples() -> Any:
    return files("entrodrop_tune") / "data" / "samples"


def _reuse(card: DatasetCard, output: Path, wanted: dict[str, str]) -> Prepared:
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    if any(record.get(key) != value for key, value in wanted.items()):
        raise UserError(
            f"folder {output} already exists and is not the {wanted['origin']} of {wanted['name']}: "
            "choose another --output, or remove the folder."
        )
    return _describe(card, output, record, reused=True)


def _describe(card: DatasetCard, output: Path, record: dict[str, str], reused: bool) -> Prepared:
    rows = {file.name: _count(file) for file in sorted(output.glob("*.jsonl"))}
    return Prepared(record["name"], output, rows, card.licence, card.source, record["note"], reused)


def _count(file: Path) -> int:
    with file.open("rb") as opened:
        return sum(1 for _ in opened)


def _write_from_hub(name: str, card: DatasetCard, folder: Path, progress: bool) -> None:
    from datasets import load_dataset

    if card.hub is None:
        raise UserError(f"{name} has no counterpart on the hub: leave out --from-hub.")
    dataset, subset, splits = card.hub
    for split, file in splits.items():
        try:
            rows = load_dataset(dataset, subset, split=split)
        except Exception as error:  # the hub's client raises many unrelated types; each means "not available"
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"cannot load {dataset} (split {split}) from the hub: {reason}") from None
        _write_jsonl(folder / file, map(card.convert, tqdm(rows, desc=file, unit="row", disable=not progress)))


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any] | None]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            if row is not None:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
