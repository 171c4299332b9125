"""Write the bundled training samples from a folder of full data sets: ``python make_samples.py DATA``.

Every row comes from a *training* (or, for MBPP's validation file, validation) split. Left out: GSM8K rows that the
evaluation's few-shot prompt shows or that share 13 words in a row with the test split, and MBPP tasks whose text is
identical to one of the test split. The choice is seeded; rows keep their file's order.
"""

import json
import random
import re
import sys
from pathlib import Path

from entrodrop_tune.data.prepare import mbpp_row, pubmedqa_row

SAMPLES = Path(__file__).parent
FEWSHOT_ROWS = 16
NGRAM = 13


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write(name: str, rows: list[dict]) -> None:
    path = SAMPLES / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{name}: {len(rows)} rows, {path.stat().st_size} bytes")


def choose(rows: list[dict], *counts: int) -> list[list[dict]]:
    """Disjoint seeded choices of ``counts`` rows, each in the file's order."""
    order = random.Random(0).sample(range(len(rows)), sum(counts))
    parts, start = [], 0
    for count in counts:
        parts.append([rows[i] for i in sorted(order[start : start + count])])
        start += count
    return parts


def ngrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


def gsm8k(data: Path) -> None:
    test = set().union(*(ngrams(row["question"] + " " + row["answer"]) for row in read(data / "gsm8k/test.jsonl")))
    rows = read(data / "gsm8k/train.jsonl")[:-FEWSHOT_ROWS]
    clean = [row for row in rows if not ngrams(row["question"] + " " + row["answer"]) & test]
    train, validation = choose(clean, 128, 48)
    write("gsm8k/train.jsonl", train)
    write("gsm8k/validation.jsonl", validation)


def mbpp(data: Path) -> None:
    test = {row["text"].strip() for row in read(data / "mbpp/test.jsonl")}
    for split in ("train", "validation"):
        rows = [row for row in read(data / f"mbpp/{split}.jsonl") if row["text"].strip() not in test]
        write(f"mbpp/{split}.jsonl", [mbpp_row(row) for row in rows])


def pubmedqa(data: Path) -> None:
    rows = read(data / "pubmedqa/train.jsonl")
    train, validation = choose(rows, 60, 24)
    write("pubmedqa/train.jsonl", [pubmedqa_row(row) for row in train])
    write("pubmedqa/validation.jsonl", [pubmedqa_row(row) for row in validation])
    (SAMPLES / "pubmedqa/train_ids.txt").write_text("".join(f"{row['id']}\n" for row in rows), encoding="utf-8")


def replay(data: Path) -> None:
    (p3,) = choose(read(data / "p3_retention/train.jsonl"), 200)
    rows = [{"prompt": row["prompt"], "response": row["completion"], "source": "P3"} for row in p3]
    for task in read(data / "self_instruct/seed_tasks.jsonl"):
        instance = task["instances"][0]
        prompt = "\n\n".join(part for part in (task["instruction"], instance["input"]) if part)
        rows.append({"prompt": prompt, "response": instance["output"], "source": "self-instruct"})
    write("replay/train.jsonl", rows)


if __name__ == "__main__":
    for make in (gsm8k, mbpp, pubmedqa, replay):
        make(Path(sys.argv[1]))
