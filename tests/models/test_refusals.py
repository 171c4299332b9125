"""What cannot be loaded is refused in one line that names the thing and the fix."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from entrodrop_tune.errors import UserError
from entrodrop_tune.models import SUPPORTED, ModelConfig, load_model, load_tokenizer, read_architecture


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of the tiny model that a test may break."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def _edit_config(model, **changes):
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _refusal(model) -> str:
    with pytest.raises(UserError) as caught:
        load_model(ModelConfig(path=str(model)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folder_names_path_and_fix(tmp_path):
    message = _refusal(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message and "entrodrop prepare smollm2" in message


def test_folder_without_config(tmp_path):
    assert "no config.json" in _refusal(tmp_path)


def test_config_that_is_not_json(model):
    (model / "config.json").write_text("{")
    assert "not a model config" in _refusal(model)


@pytest.mark.parametrize("model_type", ["gpt2", "mamba", "gemma2", "qwen3_moe"])
def test_unsupported_architecture_lists_the_supported(model, model_type):
    _edit_config(model, model_type=model_type)
    message = _refusal(model)
    assert f'"{model_type}"' in message
    assert all(name in message for name in SUPPORTED)


def test_gemma2_says_why(model):
    _edit_config(model, model_type="gemma2")
    assert "tanh" in _refusal(model)


def test_quantized_checkpoint(model):
    _edit_config(model, quantization_config={"quant_method": "gptq"})
    assert "gptq" in _refusal(model) and "qlora" in _refusal(model)


def test_unknown_rope_scaling(model):
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}
    _edit_config(model, rope_parameters=rope)
    assert '"longrope"' in _refusal(model)


def test_unknown_activation(model):
    _edit_config(model, hidden_act="relu")
    assert '"relu"' in _refusal(model)


def test_pickled_weights_only(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickled" in _refusal(model) and "safetensors" in _refusal(model)


def test_no_weights(model):
    (model / "model.safetensors").unlink()
    assert "incomplete" in _refusal(model)


def test_broken_weights(model):
    (model / "model.safetensors").write_bytes(b"not safetensors at all")
    assert "cannot be read" in _refusal(model)


def test_missing_extra_and_misshapen_tensors(model):
    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    without = {key: value for key, value in weights.items() if key != name}
    save_file(without, model / "model.safetensors")
    assert f'lack "{name}"' in _refusal(model)
    save_file({**weights, name: torch.zeros(3, 3)}, model / "model.safetensors")
    assert "(3, 3)" in _refusal(model) and name in _refusal(model)
    save_file({**weights, "model.surprise": torch.zeros(1)}, model / "model.safetensors")
    assert '"model.surprise"' in _refusal(model)


def test_tokenizer_missing(model):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(model)


def test_code_in_the_folder_is_never_run(model):
    (model / "evil.py").write_text("raise SystemExit('ran')\n")
    _edit_config(model, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    assert read_architecture(model).num_layers == 2


def test_too_long_a_sequence_is_refused(model):
    decoder = load_model(ModelConfig(path=str(model)))
    with pytest.raises(ValueError, match="513 tokens exceeds the model's context of 512"):
        decoder.hidden_states(torch.zeros(1, 513, dtype=torch.long))


def test_sliding_window_bounds_the_context(model):
    _edit_config(model, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=100)
    assert read_architecture(model).max_seq_len == 100


def test_tokenizer_with_more_tokens_than_the_model(model):
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(model)
    with pytest.raises(UserError, match=r"385 tokens, but the model only 384 embeddings"):
        load_tokenizer(model)
