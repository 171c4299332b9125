"""Arbitrary input never ends in anything but counted rows or one clear line."""

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrodrop_tune.config import validate
from entrodrop_tune.data import DataConfig, collate, epoch_rows, load_data
from entrodrop_tune.errors import UserError
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
GOOD = b'{"question": "1+1?", "answer": "2"}'

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
pair_rows = st.fixed_dictionaries({}, optional={"question": json_values, "answer": json_values, "system": json_values})
chat_rows = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "role": st.sampled_from(["user", "assistant", "system", "tool"]) | json_values,
                    "content": json_values,
                },
            )
            | json_values,
            max_size=4,
        )
        | json_values
    },
)


def _load(path: Path, **options):
    options = {"train": str(path), "validation_fraction": 0.0, "cache_dir": None, "bad_rows": "skip", **options}
    return load_data(validate(DataConfig, options), TOKENIZER, progress=False)


def _check(path: Path) -> None:
    """Every row is a sample or counted, and what remains makes sound batches."""
    try:
        data = _load(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    (counts,) = data.report.train
    assert counts.rows == counts.samples + counts.malformed + counts.empty
    batch = collate(epoch_rows(data, seed=0, epoch=0), pad_id=0)
    assert ((batch.labels == -100) | (batch.sample_ids >= 0)).all()
    assert all(sample.is_target[1:].any() for sample in data.train)


@QUICK
@given(lines=st.lists(st.binary(max_size=60), max_size=5))
def test_any_bytes(lines, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "train.jsonl"
    path.write_bytes(b"\n".join([GOOD, *lines]))
    _check(path)


@QUICK
@given(rows=st.lists(pair_rows, min_size=1, max_size=5))
def test_any_prompt_and_response(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "train.jsonl"
    path.write_bytes(b"\n".join([GOOD, *(json.dumps(row).encode() for row in rows)]))
    _check(path)


@QUICK
@given(rows=st.lists(chat_rows, min_size=1, max_size=5))
def test_any_messages(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "train.jsonl"
    good = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
    path.write_text("\n".join(json.dumps(row) for row in [good, *rows]))
    _check(path)


@QUICK
@given(text=st.text(max_size=200))
def test_any_csv(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "train.csv"
    path.write_bytes(b"question,answer\na,b\n" + text.encode("utf-8", "surrogatepass"))
    _check(path)


@QUICK
@given(
    question=st.text(min_size=1, max_size=40).filter(str.strip),
    answer=st.text(min_size=1, max_size=40).filter(str.strip),
)
def test_any_answer_is_learned_with_its_end(question, answer, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "train.jsonl"
    path.write_text(json.dumps({"question": question, "answer": answer}))
    (sample,) = _load(path).train
    learned = TOKENIZER.decode(sample.tokens[sample.is_target])
    assert learned.startswith(TOKENIZER.decode(TOKENIZER(answer)["input_ids"])[:1])
    assert learned.endswith("<|im_end|>") and answer.strip() in learned
    prompt = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    assert sample.tokens[: len(prompt)].tolist() == prompt and not sample.is_target[: len(prompt) - 1].any()
