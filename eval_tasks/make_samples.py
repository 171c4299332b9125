"""Write the bundled evaluation samples from a folder of full data sets: ``python eval_tasks/make_samples.py DATA``.

Every sample is a seeded random choice from a *test* (or validation, where no labelled test split exists) split, kept
in the file's order. The few-shot examples of GSM8K are the last rows of its training split. Sources and licences
are listed in README.md beside this file.
"""

import json
import random
import re
import sys
from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"
# (source file, sample name, rows)
PLAIN = [
    ("piqa/valid.jsonl", "piqa", 200),
    ("hellaswag/validation.jsonl", "hellaswag", 200),
    ("pubmedqa/test.jsonl", "pubmedqa", 100),
]
FEWSHOT_ROWS = 16
MMLU_ROWS_PER_SUBJECT = 5
WIKITEXT_BYTES = 120_000
IFEVAL_ROWS = 50
OVERLAP_WORDS = 13
# Their checkers need NLTK's punkt data, which is a download.
IFEVAL_NEEDS_DATA = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_jsonl(name: str, rows: list[dict]) -> None:
    path = SAMPLES / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size} bytes")


def choose(rows: list[dict], n: int) -> list[dict]:
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), min(n, len(rows))))]


def word_runs(row: dict, fields: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Every run of 13 words in the row, lower case, letters and digits only."""
    words = re.findall(r"[a-z0-9]+", " ".join(row[field] for field in fields).lower())
    return set(zip(*(words[i:] for i in range(OVERLAP_WORDS)), strict=False))


def without_overlap(rows: list[dict], training: list[dict], fields: tuple[str, ...]) -> list[dict]:
    """Rows that share no run of 13 words with the training split, which users train on."""
    seen = set().union(*(word_runs(row, fields) for row in training))
    kept = [row for row in rows if not word_runs(row, fields) & seen]
    print(f"{len(rows) - len(kept)} of {len(rows)} rows overlap with the training split and are left out")
    return kept


def sample_mmlu(rows: list[dict]) -> list[dict]:
    """A few rows a subject, interleaved, so that any ``--limit`` still covers the subjects evenly."""
    by_subject: dict[str, list[dict]] = {}
    for row in rows:
        by_subject.setdefault(row["subject"], []).append(row)
    chosen = [choose(group, MMLU_ROWS_PER_SUBJECT) for _, group in sorted(by_subject.items())]
    return [group[i] for i in range(MMLU_ROWS_PER_SUBJECT) for group in chosen if i < len(group)]


def wikitext_pages(text: str) -> list[dict]:
    """Cut the running text of WikiText at its top-level headings (`` = Title = ``) into one row an article."""
    starts = [m.start() for m in re.finditer(r"(?m)^ = [^=].*? = \n", text)]
    return [{"page": text[a:b]} for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def sample_wikitext(pages: list[dict]) -> list[dict]:
    chosen, size = [], 0
    for page in sorted(pages, key=lambda page: len(page["page"])):  # many short articles: more items to pair
        size += len(page["page"].encode())
        if size > WIKITEXT_BYTES:
            break
        chosen.append(page)
    random.Random(0).shuffle(chosen)
    return chosen


def write_arithmetic(rows: int = 120) -> list[dict]:
    """Word problems of one step with a number that does not matter, in SVAMP's form; written for this project."""
    rng, names = random.Random(0), ["Ana", "Ben", "Chen", "Dina", "Emeka", "Farah", "Goran", "Hana"]
    things = ["apples", "stickers", "books", "marbles", "pencils", "shells", "coins", "cards"]
    problems = []
    for i in range(rows):
        (who, other), thing = rng.sample(names, 2), rng.choice(things)
        a, b, c = rng.randint(12, 60), rng.randint(2, 11), rng.randint(3, 40)
        aside = f"{other} has {c} of them."
        body, question, answer = [
            (f"{who} has {a} {thing} and gets {b} more. {aside}", f"How many {thing} does {who} have now?", a + b),
            (f"{who} has {a} {thing} and gives away {b}. {aside}", f"How many {thing} does {who} have left?", a - b),
            (f"{who} has {b} boxes with {a} {thing} in each. {aside}", f"How many {thing} are in the boxes?", a * b),
            (f"{who} puts {a * b} {thing} evenly into {b} boxes. {aside}", "How many are in each box?", a),
        ][i % 4]
        problems.append({"Body": body, "Question": question, "Answer": str(answer)})
    return problems


def main(data: Path) -> None:
    SAMPLES.mkdir(exist_ok=True)
    for source, name, rows in PLAIN:
        write_jsonl(name, choose(read_jsonl(data / source), rows))
    for name, rows, fields in [("gsm8k", 200, ("question", "answer")), ("mbpp", 100, ("text", "code"))]:
        training = read_jsonl(data / name / "train.jsonl")
        test = without_overlap(read_jsonl(data / name / "test.jsonl"), training, fields)
        write_jsonl(name, choose(test, rows))
    ifeval = [
        r for r in read_jsonl(data / "ifeval/test.jsonl") if not IFEVAL_NEEDS_DATA & set(r["instruction_id_list"])
    ]
    write_jsonl("ifeval", choose(ifeval, IFEVAL_ROWS))
    write_jsonl("mbpp_fewshot", [row for row in read_jsonl(data / "mbpp/prompt.jsonl") if row["task_id"] in (2, 3, 4)])
    write_jsonl("gsm8k_fewshot", read_jsonl(data / "gsm8k/train.jsonl")[-FEWSHOT_ROWS:])
    write_jsonl("arithmetic", write_arithmetic())
    write_jsonl("mmlu", sample_mmlu(read_jsonl(data / "mmlu/test.jsonl")))
    write_jsonl("wikitext", sample_wikitext(wikitext_pages((data / "wikitext2/test.txt").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
