"""From files to samples: formats, columns, templates, splits, duplicates, lengths, cache."""

import json

import numpy as np
import pandas as pd
import pytest

from entrodrop_tune.config import validate
from entrodrop_tune.data import DataConfig, load_data
from entrodrop_tune.data import source as source_module
from entrodrop_tune.errors import UserError
from tests.tiny import tiny_tokenizer

ROWS = [{"question": f"What is {i} plus {i}?", "answer": f"{2 * i}"} for i in range(20)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def load(tokenizer):
    def run(train, **options):
        options = {"cache_dir": None, "validation_fraction": 0.0, **options}
        train = train if isinstance(train, list) else str(train)
        return load_data(validate(DataConfig, {"train": train, **options}), tokenizer, progress=False)

    return run


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _ids(samples):
    return [sample.id for sample in samples]


def _texts(tokenizer, samples):
    return [tokenizer.decode(sample.tokens) for sample in samples]


def test_every_format_gives_the_same_samples(load, tmp_path):
    from datasets import Dataset

    expected = load(_write(tmp_path / "a.jsonl", ROWS)).train
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    pd.DataFrame(ROWS).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "a")
    for name in ("a.json", "a.csv", "a.parquet", "a"):
        samples = load(tmp_path / name).train
        assert _ids(samples) == _ids(expected), name
        assert all(np.array_equal(s.tokens, e.tokens) for s, e in zip(samples, expected, strict=True))


def test_csv_with_the_unnamed_index_column_that_pandas_writes(load, tmp_path):
    pd.DataFrame(ROWS).to_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().startswith(",question,answer\n")
    assert _ids(load(tmp_path / "a.csv").train) == _ids(load(_write(tmp_path / "a.jsonl", ROWS)).train)


def test_hub_data_set_by_name(load, monkeypatch):
    from datasets import Dataset

    asked = []

    def fake(name, subset, split):
        asked.append((name, subset, split))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", fake)
    data = load([{"path": "hf://openai/gsm8k", "subset": "main", "split": "train[:20]"}])
    assert asked == [("openai/gsm8k", "main", "train[:20]")] and len(data.train) == 20


def test_hub_out_of_reach_is_one_line(load):
    with pytest.raises(UserError, match=r"cannot load hf://nobody/nothing \(split train\) from the hub"):
        load("hf://nobody/nothing")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": "2+2?", "response": "4"},
        {"instruction": "2+2?", "output": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"query": "2+2?", "response": "4"},
        {"problem": "2+2?", "solution": "4"},
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
                {"role": "assistant", "content": "4"},
            ]
        },
        {  # NuminaMath
            "source": "cn_k12",
            "problem": "2+2?",
            "solution": "4",
            "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
        },
        {  # Infinity-Instruct
            "id": 1,
            "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
            "label": {"ability_en": ["maths"]},
            "langdetect": "en",
        },
    ],
    ids=lambda row: "-".join(row),
)
def test_usual_column_names_are_found(row, load, tokenizer, tmp_path):
    (sample,) = load(_write(tmp_path / "a.jsonl", [row])).train
    assert tokenizer.decode(sample.tokens) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    assert tokenizer.decode(sample.tokens[sample.is_target]) == "4<|im_end|>"


def test_alpaca_input_follows_the_instruction(load, tokenizer, tmp_path):
    row = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
    (text,) = _texts(tokenizer, load(_write(tmp_path / "a.jsonl", [row])).train)
    assert "user\nAdd.\n\n2 and 2<|im_end|>" in text


def test_named_columns_and_templates(load, tokenizer, tmp_path):
    path = _write(tmp_path / "a.jsonl", [{"ask": "2+2?", "reply": "4", "hint": ["a", "b"]}])
    (text,) = _texts(tokenizer, load(path, columns={"prompt": "ask", "response": "reply"}).train)
    assert "user\n2+2?<|im_end|>" in text and "assistant\n4<|im_end|>" in text
    template = {"prompt": "Q: {ask} ({hint[1]})", "response": "A: {reply}"}
    (text,) = _texts(tokenizer, load(path, template=template).train)
    assert "user\nQ: 2+2? (b)<|im_end|>" in text and "assistant\nA: 4<|im_end|>" in text
    (text,) = _texts(tokenizer, load(path, template={"prompt": "{ask}!"}, columns={"response": "reply"}).train)
    assert "user\n2+2?!<|im_end|>" in text


def test_half_named_columns_are_completed_or_refused(load, tokenizer, tmp_path):
    path = _write(tmp_path / "a.jsonl", [{"ask": "2+2?", "answer": "4", "system": "Own."}])
    (text,) = _texts(tokenizer, load(path, columns={"prompt": "ask"}).train)
    assert "user\n2+2?<|im_end|>" in text and "assistant\n4<|im_end|>" in text and "system\nOwn." in text
    with pytest.raises(UserError, match=r"data.columns.prompt is needed too: .* has the columns answer, ask, system"):
        load(path, columns={"response": "answer"})


def test_system_prompt_from_config_and_row(load, tokenizer, tmp_path):
    rows = [
        {"question": "a", "answer": "b"},
        {"question": "a", "answer": "b", "system": "Own."},
        {"question": "a", "answer": "b", "system": ""},
    ]
    texts = _texts(tokenizer, load(_write(tmp_path / "a.jsonl", rows), system_prompt="Common.").train)
    assert ["system\nCommon." in text for text in texts] == [True, False, True]
    assert "system\nOwn." in texts[1]


def test_plain_text_is_learned_whole_and_can_be_split(load, tokenizer, tmp_path):
    path = _write(tmp_path / "a.jsonl", [{"text": "word " * 50}])
    (whole,) = load(path).train
    assert whole.is_target.all()
    pieces = load(path, max_length=20, too_long="split").train
    assert np.array_equal(np.concatenate([p.tokens for p in pieces]), whole.tokens[: sum(map(len, pieces))])
    assert all(2 <= len(piece) <= 20 for piece in pieces) and len(set(_ids(pieces))) == len(pieces)


def test_source_code_in_a_content_column(load, tokenizer, tmp_path):
    row = {"max_stars_repo_path": "a.py", "id": "1", "content": "def add(a, b):"}
    (sample,) = load(_write(tmp_path / "a.jsonl", [row])).train
    assert tokenizer.decode(sample.tokens) == "def add(a, b):<|im_end|>"


def test_too_long_rows(load, tmp_path):
    rows = [{"question": "a", "answer": "b"}, {"question": "a", "answer": "long " * 100}]
    path = _write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=r"1 of 2 rows in .* exceed data.max_length=60 .*a.jsonl:2: \d+ tokens"):
        load(path, max_length=60)
    skipped = load(path, max_length=60, too_long="skip")
    cut = load(path, max_length=60, too_long="truncate")
    assert [len(skipped.train), len(cut.train), len(cut.train[1])] == [1, 2, 60]
    assert [data.report.train[0].too_long for data in (skipped, cut)] == [1, 1]


def test_truncation_that_leaves_no_answer_is_counted(load, tmp_path):
    rows = [{"question": "a", "answer": "b"}, {"question": "long " * 100, "answer": "b"}]
    path = _write(tmp_path / "a.jsonl", rows)
    data = load(path, max_length=60, too_long="truncate", bad_rows="skip")
    assert len(data.train) == 1 and data.report.train[0].empty == 1
    with pytest.raises(UserError, match=r"max_length\) hold nothing to learn"):
        load(path, max_length=60, too_long="truncate")


def test_ids_do_not_depend_on_order_file_or_tokenizer(load, tmp_path):
    ids = _ids(load(_write(tmp_path / "a.jsonl", ROWS)).train)
    reversed_ids = _ids(load(_write(tmp_path / "b.jsonl", ROWS[::-1])).train)
    assert ids == reversed_ids[::-1]
    assert len(set(ids)) == len(ids) and all(0 <= i < 2**63 for i in ids)
    options = {"train": str(tmp_path / "a.jsonl"), "validation_fraction": 0.0, "cache_dir": None}
    other = load_data(validate(DataConfig, options), tiny_tokenizer(300), progress=False)
    assert _ids(other.train) == ids
    assert ids[0] == 4029402471981579917  # the same on every machine and in every version


def test_repeats_get_their_own_ids_and_are_counted(load, tmp_path):
    data = load(_write(tmp_path / "a.jsonl", ROWS + ROWS[:3]))
    assert data.report.duplicates == 3
    assert len(set(_ids(data.train))) == 23
    assert any("3 of 23 training samples are exact repeats" in line for line in data.report.lines())


def test_held_out_rows_depend_on_content_and_seed_alone(load, tmp_path):
    forward = load(_write(tmp_path / "a.jsonl", ROWS), validation_fraction=0.25)
    backward = load(_write(tmp_path / "b.jsonl", ROWS[::-1]), validation_fraction=0.25)
    other = load(tmp_path / "a.jsonl", validation_fraction=0.25, split_seed=1)
    assert len(forward.validation) == 5 and len(forward.train) == 15
    assert set(_ids(forward.validation)) == set(_ids(backward.validation)) != set(_ids(other.validation))
    assert not set(_ids(forward.validation)) & set(_ids(forward.train))


def test_repeats_stay_on_one_side_of_the_split(load, tmp_path):
    data = load(_write(tmp_path / "a.jsonl", ROWS * 3), validation_fraction=0.25)
    assert data.report.leaks == 0
    assert (len(data.validation), len(data.train)) == (15, 45)


def test_leaks_into_a_given_validation_file_are_counted(load, tmp_path):
    train = _write(tmp_path / "a.jsonl", ROWS)
    data = load(train, validation=str(_write(tmp_path / "v.jsonl", [ROWS[3], {"question": "new", "answer": "x"}])))
    assert data.report.leaks == 1
    assert any("1 of 2 validation samples are also in the training data" in line for line in data.report.lines())


def test_split_of_too_few_rows_is_refused(load, tmp_path):
    with pytest.raises(UserError, match="1 distinct rows leaves nothing to validate on"):
        load(_write(tmp_path / "a.jsonl", ROWS[:1]), validation_fraction=0.1)


def test_report_counts_tokens_and_is_plain_data(load, tmp_path):
    data = load(_write(tmp_path / "a.jsonl", ROWS))
    assert data.report.train_tokens == sum(len(sample) for sample in data.train)
    assert data.report.train_target_tokens == sum(int(sample.is_target.sum()) for sample in data.train)
    assert json.loads(json.dumps(data.report.to_dict()))["train"][0]["rows"] == 20
    assert len(data.report.train[0].sha256) == 64


def _counting(monkeypatch):
    calls = []
    original = source_module._tokenise
    monkeypatch.setattr(source_module, "_tokenise", lambda *args: calls.append(args) or original(*args))
    return calls


def test_cache_returns_the_same_and_is_used(load, tmp_path, monkeypatch):
    calls = _counting(monkeypatch)
    path = _write(tmp_path / "a.jsonl", [*ROWS, {"question": "", "answer": "x"}])
    options = {"cache_dir": str(tmp_path / "cache"), "bad_rows": "skip"}
    first, second = load(path, **options), load(path, **options)
    assert len(calls) == 1
    assert _ids(first.train) == _ids(second.train)
    assert all(
        np.array_equal(a.tokens, b.tokens) and np.array_equal(a.is_target, b.is_target)
        for a, b in zip(first.train, second.train, strict=True)
    )
    assert first.report == second.report and second.report.train[0].empty == 1


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 400},
        {"system_prompt": "S"},
        {"template": {"prompt": "{question}!"}},
        {"bad_rows": "skip"},
        {"too_long": "skip"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_cache_is_not_used_when_settings_differ(change, load, tmp_path, monkeypatch):
    calls = _counting(monkeypatch)
    path = _write(tmp_path / "a.jsonl", ROWS)
    load(path, cache_dir=str(tmp_path / "cache"))
    load(path, cache_dir=str(tmp_path / "cache"), **change)
    assert len(calls) == 2


def test_cache_is_not_used_when_file_or_tokenizer_differ(load, tokenizer, tmp_path, monkeypatch):
    calls = _counting(monkeypatch)
    cache = str(tmp_path / "cache")
    path = _write(tmp_path / "a.jsonl", ROWS)
    load(path, cache_dir=cache)
    _write(path, ROWS[1:])
    load(path, cache_dir=cache)
    other = tiny_tokenizer()
    other.chat_template = other.chat_template.replace("<|im_end|>", "<|im_end|>\n")
    load_data(DataConfig(train=str(path), cache_dir=cache, validation_fraction=0.0), other, progress=False)
    assert len(calls) == 3


def test_broken_cache_file_is_made_anew(load, tmp_path):
    path = _write(tmp_path / "a.jsonl", ROWS)
    first = load(path, cache_dir=str(tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert _ids(load(path, cache_dir=str(tmp_path / "cache")).train) == _ids(first.train)


def test_unwritable_cache_costs_nothing_but_time(load, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    assert len(load(_write(tmp_path / "a.jsonl", ROWS), cache_dir=str(tmp_path / "cache")).train) == 20


def test_sequences_beyond_the_models_context_are_refused(tokenizer, tmp_path):
    path = _write(tmp_path / "a.jsonl", ROWS)
    config = validate(DataConfig, {"train": str(path), "cache_dir": None})
    with pytest.raises(UserError, match=r"up to \d+ tokens, but the model's context is 10: set data.max_length=10"):
        load_data(config, tokenizer, progress=False, context=10)
    packed = config.model_copy(update={"packing": True})
    with pytest.raises(UserError, match="packed sequences have up to 2048 tokens"):
        load_data(packed, tokenizer, progress=False, context=1000)
    assert load_data(config, tokenizer, progress=False, context=1000).train


def test_sources_may_be_paths(load, tmp_path):
    one, two = _write(tmp_path / "a.jsonl", ROWS[:5]), _write(tmp_path / "b.jsonl", ROWS[5:])
    assert len(load([str(one), {"path": str(two)}]).train) == 20
    with pytest.raises(UserError, match=r'unknown key "train.0.pth"\. Did you mean "path"'):
        load([{"pth": str(one)}])
    with pytest.raises(UserError, match='"train" = \\[\\]'):
        load([])


def test_limit_takes_the_first_rows(load, tmp_path):
    path = str(_write(tmp_path / "a.jsonl", ROWS))
    cache = str(tmp_path / "cache")
    everything, few = (load([{"path": path, "limit": limit}], cache_dir=cache) for limit in (None, 5))
    assert _ids(few.train) == _ids(everything.train)[:5]
    assert few.report.train[0].rows == 5
