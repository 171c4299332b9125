"""The shipped configs: current, valid, honest about sizes."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from entrodrop_tune.cli.main import app
from entrodrop_tune.config import load_mapping
from entrodrop_tune.training.launch import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*/*.yaml"))
NAMES = [str(path.relative_to(CONFIGS)) for path in FILES]


@pytest.fixture(scope="module")
def make_configs():
    spec = importlib.util.spec_from_file_location("make_configs", CONFIGS / "make_configs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_configs"] = module
    spec.loader.exec_module(module)
    return module


def test_files_are_what_the_script_writes(make_configs):
    expected = {
        f"{size.family}/{size.size}_{kind}.yaml": make_configs.render(size, kind == "lora")
        for size in make_configs.SIZES
        for kind in ("full", "lora")
    }
    assert {name: (CONFIGS / name).read_text() for name in NAMES} == expected
    assert len(NAMES) == 28


@pytest.mark.parametrize("name", NAMES)
def test_config_is_valid_and_names_itself(name):
    path = CONFIGS / name
    config = load_config(path, [])
    text = path.read_text()
    recipe = "lora" if config.adapter else "full"
    assert name.endswith(f"_{recipe}.yaml")
    assert f"recipes/{recipe}_finetune" in text and f"--config entrodrop_tune/configs/{name}" in text
    assert f"--local-dir {config.model.path}" in text or f"--output {config.model.path}" in text
    assert "Memory" in text and "Computed" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_check_accepts_config(name, tiny_model, tiny_data):
    overrides = [
        f"model.path={tiny_model}",
        f"data.train={tiny_data / 'train.jsonl'}",
        f"data.validation={tiny_data / 'validation.jsonl'}",
        "data.max_length=256",
        "data.cache_dir=null",
        "device=cpu",
    ]
    result = CliRunner().invoke(app, ["check", "--config", name.removesuffix(".yaml"), "--json", *overrides])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["steps"]["total"] > 0 and plan["memory_bytes"]["total_estimate"] > 0


@pytest.mark.parametrize(("index", "model_type"), [(0, "llama"), (4, "qwen3"), (8, "qwen2"), (13, "llama")])
def test_stated_parameters_are_those_transformers_counts(make_configs, index, model_type):
    size = make_configs.SIZES[index]
    config = AutoConfig.for_model(
        model_type,
        hidden_size=size.dim,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        intermediate_size=size.hidden,
        vocab_size=size.vocab,
        tie_word_embeddings=size.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == pytest.approx(size.parameters(), rel=1e-3)


def test_a_copy_elsewhere_loads_too(tmp_path):
    copied = shutil.copy(CONFIGS / "qwen3" / "0.6b_lora.yaml", tmp_path)
    assert load_mapping(copied)["adapter"]["type"] == "lora"
