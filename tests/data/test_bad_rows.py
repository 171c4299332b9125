"""Malformed input: each is named with its line, and either stops the run or is skipped and counted."""

import json

import pytest

from entrodrop_tune.config import validate
from entrodrop_tune.data import DataConfig, load_data
from entrodrop_tune.errors import UserError
from tests.tiny import tiny_tokenizer

GOOD = '{"question": "What is 1 plus 2?", "answer": "3"}'
OTHER = '{"question": "What is 3 plus 4?", "answer": "7"}'
CHAT = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}'


def _messages(*items) -> str:
    return json.dumps({"messages": list(items)})


USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}

# name: (kind, the bad line, part of the reason); every case sits on line 2 between good rows of its style.
PAIR_ROWS = {
    "broken JSON": ("malformed", b'{"question": "x", "answer": ', "not JSON"),
    "trailing comma": ("malformed", b'{"question": "x", "answer": "y",}', "not JSON"),
    "two objects on a line": ("malformed", f"{GOOD} {GOOD}".encode(), "not JSON"),
    "single quotes": ("malformed", b"{'question': 'x', 'answer': 'y'}", "not JSON"),
    "a list": ("malformed", b'["x", "y"]', "must be a JSON object, this is a list"),
    "a string": ("malformed", b'"x"', "must be a JSON object, this is a string"),
    "a number": ("malformed", b"17", "must be a JSON object, this is a number"),
    "null": ("malformed", b"null", "must be a JSON object, this is null"),
    "nested too deeply": ("malformed", b"[" * 100_000, "nested too deeply"),
    "a number of 5000 digits": ("malformed", b'{"question": "x", "n": ' + b"7" * 5000 + b"}", "too many digits"),
    "not UTF-8": ("malformed", b'{"question": "caf\xe9", "answer": "y"}', "not UTF-8 (byte 17 is 0xe9)"),
    "NUL byte": ("malformed", b'{"question": "x\x00", "answer": "y"}', "not JSON"),
    "missing answer": ("malformed", b'{"question": "x"}', 'column "answer" is missing'),
    "missing question": ("malformed", b'{"answer": "y"}', 'column "question" is missing'),
    "number for an answer": ("malformed", b'{"question": "x", "answer": 3}', "must be a string, not int"),
    "list for a question": (
        "malformed",
        b'{"question": ["x"], "answer": "y"}',
        "must be a string, not list",
    ),
    "half a surrogate pair": (
        "malformed",
        b'{"question": "\\ud83d", "answer": "y"}',
        "half a surrogate pair",
    ),
    "empty answer": ("empty", b'{"question": "x", "answer": ""}', 'column "answer" is empty'),
    "blank answer": ("empty", b'{"question": "x", "answer": " \\n\\t"}', 'column "answer" is empty'),
    "null answer": ("empty", b'{"question": "x", "answer": null}', 'column "answer" is null'),
    "empty question": ("empty", b'{"question": "", "answer": "y"}', 'column "question" is empty'),
    "empty object": ("malformed", b"{}", "is missing"),
}
CHAT_ROWS = {
    "unknown role": (
        "malformed",
        _messages(USER, {"role": "bot", "content": "x"}),
        "message 2 has the unknown role 'bot'",
    ),
    "role is a list": ("malformed", _messages({"role": [], "content": "x"}), "message 1 has the unknown role []"),
    "no role": ("malformed", _messages(USER, {"content": "x"}), "message 2 has the unknown role None"),
    "messages is a string": ("malformed", '{"messages": "hi"}', "must be a list of messages, not str"),
    "message is a string": ("malformed", _messages("hi", ASSISTANT), "message 1 must be an object, not str"),
    "no messages": ("empty", _messages(), "is an empty list"),
    "no assistant": ("malformed", _messages(USER), "no message is by the assistant"),
    "content is null": ("empty", _messages(USER, {"role": "assistant", "content": None}), "is null"),
    "content is a number": (
        "malformed",
        _messages(USER, {"role": "assistant", "content": 7}),
        "must be a string",
    ),
    "content is empty": ("empty", _messages(USER, {"role": "assistant", "content": ""}), "is empty"),
    "an image": (
        "malformed",
        _messages({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT),
        "content that is not text",
    ),
}
CASES = {f"pair: {name}": (GOOD, OTHER, *case) for name, case in PAIR_ROWS.items()} | {
    f"chat: {name}": (CHAT, CHAT, *case) for name, case in CHAT_ROWS.items()
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def _load(path, tokenizer, **options):
    options = {"validation_fraction": 0.0, "cache_dir": None, "train": str(path), **options}
    return load_data(validate(DataConfig, options), tokenizer, progress=False)


def _refusal(path, tokenizer, **options) -> str:
    with pytest.raises(UserError) as caught:
        _load(path, tokenizer, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_bad_row_is_refused_by_line_or_skipped_and_counted(case, tokenizer, tmp_path):
    before, after, kind, bad, reason = CASES[case]
    path = tmp_path / "train.jsonl"
    bad = bad if isinstance(bad, bytes) else bad.encode()
    path.write_bytes(b"\n".join((before.encode(), bad, after.encode())) + b"\n")
    message = _refusal(path, tokenizer)
    assert f"{path}:2: " in message and reason in message and "data.bad_rows=skip" in message
    data = _load(path, tokenizer, bad_rows="skip")
    (counts,) = data.report.train
    assert (counts.rows, counts.samples, getattr(counts, kind)) == (3, 2, 1)
    assert counts.malformed + counts.empty == 1
    assert counts.first[kind].startswith(f"{path}:2: ") and reason in counts.first[kind]
    assert any("train.jsonl:2" in line for line in data.report.lines())


def test_a_line_too_long_to_be_a_row(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("entrodrop_tune.data.read.MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "train.jsonl"
    path.write_text(f'{GOOD}\n{{"question": "{"x" * (3 << 20)}", "answer": "y"}}\n{OTHER}\n')
    assert f"{path}:2: the line is longer than 1 MiB" in _refusal(path, tokenizer)
    assert len(_load(path, tokenizer, bad_rows="skip").train) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + f"{GOOD}\n{OTHER}\n".encode(),
        f"{GOOD}\r\n{OTHER}\r\n".encode(),
        f"{GOOD}\n{OTHER}".encode(),
        f"\n{GOOD}\n\n  \n{OTHER}\n\n".encode(),
    ],
    ids=["BOM", "CRLF", "no newline at the end", "blank lines"],
)
def test_harmless_oddities_change_nothing(content, tokenizer, tmp_path):
    path, plain = tmp_path / "train.jsonl", tmp_path / "plain.jsonl"
    path.write_bytes(content)
    plain.write_text(f"{GOOD}\n{OTHER}\n")
    ids = [sample.id for sample in _load(path, tokenizer).train]
    assert ids == [sample.id for sample in _load(plain, tokenizer).train]


def test_blank_lines_are_counted_and_do_not_shift_line_numbers(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(f"\n{GOOD}\n\nnonsense\n")
    assert f"{path}:4: not JSON" in _refusal(path, tokenizer)
    (counts,) = _load(path, tokenizer, bad_rows="skip").report.train
    assert (counts.blank, counts.rows) == (2, 2)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train.jsonl", b"", "is empty"),
        ("train.jsonl", b"\n\n", "has no rows"),
        ("train.jsonl", GOOD.encode("utf-16"), "is UTF-16"),
        ("train.txt", b"text", 'unknown format ".txt"'),
        ("train.json", b'{"data": []}', "must hold a list of objects, it holds one object with keys data"),
        ("train.json", f"{GOOD}\n{OTHER}".encode(), "name it .jsonl"),
        ("train.json", b"[", "is not JSON"),
        ("train.json", b'["caf\xe9"]', "is not UTF-8"),
        ("train.json", b"[" + b"7" * 5000 + b"]", "is not JSON"),
        ("train.parquet", b"PAR1 but not really", "is not Parquet"),
        ("train.jsonl", b"garbage\nmore garbage\n", "2 malformed"),
        ("train.jsonl", b'{"ask": "x", "reply": "y"}', "has the columns ask, reply, and none of the usual names"),
    ],
)
def test_unusable_file_is_refused(name, content, reason, tokenizer, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    message = _refusal(path, tokenizer)
    assert reason in message and str(path) in message


def test_missing_file_names_path_and_fix(tokenizer, tmp_path):
    message = _refusal(tmp_path / "nowhere.jsonl", tokenizer)
    assert "nowhere.jsonl does not exist" in message and "entrodrop prepare" in message


def test_folder_is_no_file(tokenizer, tmp_path):
    assert "name a file in it" in _refusal(tmp_path, tokenizer)


def test_folder_that_lost_its_data_is_refused(tokenizer, tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    assert f"data folder {tmp_path} is no whole saved data set: " in _refusal(tmp_path, tokenizer)


def test_nothing_left_after_skipping(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "x", "answer": ""}\n')
    assert "none of 1 rows can be used" in _refusal(path, tokenizer, bad_rows="skip")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("question,answer\nx,y,z\n", "3 fields where the header names 2"),
        (",question,answer\n0,x,y,z\n", "4 fields where the header names 3"),
        ("question,answer\nx\n", "1 fields where the header names 2"),
        ('question,answer\n"x,y\n', "not CSV"),
        ("question,answer\ncaf\udce9,y\n", "not UTF-8"),
    ],
)
def test_bad_csv_rows(content, reason, tokenizer, tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert reason in _refusal(path, tokenizer)


def test_column_typo_gets_a_suggestion(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(GOOD)
    message = _refusal(path, tokenizer, columns={"prompt": "qestion", "response": "answer"})
    assert '"qestion"' in message and 'Did you mean "question"?' in message


def test_template_typo_gets_a_suggestion(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(GOOD)
    message = _refusal(path, tokenizer, template={"prompt": "Q: {questoin}"})
    assert "{questoin}" in message and 'Did you mean "question"?' in message
    assert "literal braces" in _refusal(path, tokenizer, template={"prompt": "Q: {question"})


@pytest.mark.parametrize("section", ["validation", "replay"])
def test_weight_where_it_would_mean_nothing_is_refused(section):
    with pytest.raises(UserError, match=rf'"{section}" = .*weight is for the sources of data.train'):
        validate(DataConfig, {"train": "x.jsonl", section: {"path": "y.jsonl", "weight": 0.5}})
    assert validate(DataConfig, {"train": "x.jsonl", section: {"path": "y.jsonl", "weight": 1.0}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split_seed", {"split_seed": -1}),
        ("split_seed", {"split_seed": 2**63}),
        ("train.0.weight", {"train": [{"path": "x.jsonl", "weight": float("inf")}]}),
        ("replay.ratio", {"replay": {"path": "y.jsonl", "ratio": float("inf")}}),
    ],
)
def test_numbers_out_of_range_are_refused_by_key(key, value):
    with pytest.raises(UserError, match=f'"{key}" = '):
        validate(DataConfig, {"train": "x.jsonl", **value})


def test_config_typo_gets_a_suggestion():
    with pytest.raises(UserError, match=r'unknown key "max_lenght"\. Did you mean "max_length"'):
        validate(DataConfig, {"train": "x.jsonl", "max_lenght": 4})
    with pytest.raises(UserError, match=r'unknown key "columns\.respnse"\. Did you mean "response"'):
        validate(DataConfig, {"train": "x.jsonl", "columns": {"respnse": "a"}})
    with pytest.raises(UserError, match="either prompt and response, or messages, or text"):
        validate(DataConfig, {"train": "x.jsonl", "columns": {"text": "a", "prompt": "b"}})
