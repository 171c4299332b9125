"""A model folder in any state is loaded or refused in one line that names the file or folder."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrodrop_tune.config import validate
from entrodrop_tune.data import DataConfig, load_data
from entrodrop_tune.errors import UserError
from entrodrop_tune.models import ModelConfig, load_model, load_tokenizer
from tests.fuzz.mutations import as_json, bounded, damaged, mutated
from tests.tiny import tiny_dataset, tiny_model_dir


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tiny_model_dir(tmp_path_factory.mktemp("fuzz") / "model")
    tiny_dataset(folder.parent / "train.jsonl", 2)
    return folder


def loaded(folder) -> bool:
    """Load everything training would; False if it was refused, in one line that names the folder."""
    try:
        tokenizer = load_tokenizer(folder)
        load_model(ModelConfig(path=str(folder)))
        options = {"train": str(folder.parent / "train.jsonl"), "validation_fraction": 0.0, "cache_dir": None}
        load_data(validate(DataConfig, options), tokenizer, progress=False)
    except UserError as error:
        assert "\n" not in str(error) and (str(folder) in str(error) or "train.jsonl" in str(error)), error
        return False
    return True


def with_file(original, name, content: bytes):
    """``original`` with one file replaced; the rest is linked, not copied."""
    folder = original.parent / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in original.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    (folder / name).write_bytes(content)
    return folder


def test_what_is_not_damaged_loads(original):
    assert loaded(original)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_any_json(original, name):
    document = json.loads((original / name).read_text())
    if name == "tokenizer.json":  # its vocabulary has thousands of alike places
        document["model"]["vocab"] = dict(list(document["model"]["vocab"].items()))

    @bounded(30)
    @given(content=mutated(document).map(as_json))
    def check(content):
        loaded(with_file(original, name, content))

    check()


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"]
)
def test_any_bytes(original, name):
    content = (original / name).read_bytes()
    # Weights: the header is what is parsed; a bit that flips in a number is a number still.
    content = content[:2000] if name == "model.safetensors" else content

    @bounded(15)
    @given(content=damaged(content))
    def check(content):
        loaded(with_file(original, name, content))

    check()


@bounded(15)
@given(template=st.text("{}%# |'\"[]().msgeacontrolifdx\n", max_size=60))
def test_any_chat_template(original, template):
    loaded(with_file(original, "chat_template.jinja", template.encode()))
