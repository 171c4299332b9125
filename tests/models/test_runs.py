"""Three steps of each family through ``tune run``, full and LoRA; what comes out loads where it should."""

import json
import sys

import pytest
import torch
from torchtune._cli.tune import main as tune
from transformers import AutoModelForCausalLM

import entrodrop_tune
from tests.models.families import family_dir

PACKAGE = entrodrop_tune.__path__[0]
TOKENS = torch.randint(0, 300, (1, 50), generator=torch.Generator().manual_seed(1))


def _logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora", "dora"])
@pytest.mark.parametrize("family", ["smollm2", "llama3.1", "llama3.2", "qwen2.5-tied", "qwen3-tied", "mistral-window"])
def test_three_steps(family, kind, tiny_data, tmp_path, monkeypatch):
    from peft import PeftModel

    model = family_dir(family, tmp_path / "model")
    adapter = [] if kind == "full" else [f"adapter.type={kind}", "adapter.rank=4"]
    overrides = [
        f"model.path={model}",
        f"output_dir={tmp_path / 'run'}",
        f"data.train={tiny_data / 'train.jsonl'}",
        "data.max_length=128",
        "data.packing=true",
        "optimizer.lr=0.01",
        "batch_size=1",
        "max_steps=3",
        *adapter,
    ]
    recipe = f"entrodrop_tune/recipes/{'full' if kind == 'full' else 'lora'}_finetune"
    monkeypatch.setattr(sys, "argv", ["tune", "run", recipe, "--config", f"{PACKAGE}/configs/tiny.yaml", *overrides])
    with pytest.raises(SystemExit) as finished:
        tune()
    assert not finished.value.code
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    last = tmp_path / "run" / "last"
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    before = _logits(base)
    tuned = AutoModelForCausalLM.from_pretrained(last) if kind == "full" else PeftModel.from_pretrained(base, last)
    assert (_logits(tuned) - before).abs().max() > 1e-3
