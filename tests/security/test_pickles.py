"""A checkpoint from elsewhere is data: a pickle in it is refused, whatever file it hides in, and nothing in it runs."""

import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch

from entrodrop_tune.analysis.model_source import load_subject
from entrodrop_tune.cli.main import main
from entrodrop_tune.errors import UserError
from entrodrop_tune.models import ModelConfig, load_model
from entrodrop_tune.recipes import full_finetune
from tests.training.runs import TINY, overrides

EVALUATION = ["--suite", "entrodrop_piqa", "--limit", "1", "--device", "cpu", "--no-cache"]


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """What a payload would leave behind; the payload works where pickles are trusted."""
    mark = tmp_path / "ran"
    torch.save({"weight": Payload(mark)}, tmp_path / "proof.pt")
    torch.load(tmp_path / "proof.pt", weights_only=False)
    assert mark.exists()
    mark.rmdir()
    return mark


def resigned(folder):
    """Whoever changes a checkpoint can write its hashes anew."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["sha256"]:
        manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_optimizer_state_of_a_resumed_run(mark, run_main, tiny_model, tiny_data, tmp_path):
    run = tmp_path / "run"
    arguments = ["--config", TINY, *overrides(tiny_model, tiny_data, run)]
    assert run_main(full_finetune.recipe_main, *arguments, "max_steps=2")[0] == 0
    resume = (run / "last").resolve() / "resume"
    saved = torch.load(resume / "optimizer.pt", weights_only=True)
    torch.save({**saved, "lr_scheduler": Payload(mark)}, resume / "optimizer.pt")
    resigned(resume)
    code, error = run_main(full_finetune.recipe_main, *arguments, "resume=true")
    assert not mark.exists()
    assert code == 2 and str(resume / "optimizer.pt") in error and "Traceback" not in error


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickled_model_weights(mark, run_main, tiny_model, tmp_path, write):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    write({"model.embed_tokens.weight": Payload(mark)}, model / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights"):
        load_model(ModelConfig(path=str(model)))
    code, error = run_main(main, "eval", model, *EVALUATION, "--output", tmp_path / "out")
    assert code == 2 and str(model) in error and "Traceback" not in error
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_a_pickled_adapter(mark, run_main, tiny_model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(tiny_model)}))
    torch.save({"weight": Payload(mark)}, adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        load_subject(adapter)
    code, error = run_main(main, "eval", adapter, *EVALUATION, "--output", tmp_path / "out")
    assert code == 2 and str(adapter) in error and "Traceback" not in error
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_code_in_a_model_folder_is_not_run_and_nobody_is_asked(mark, run_main, tiny_model, tmp_path):
    """A model type nobody knows, with the code for it beside it."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "alien", "auto_map": {"AutoConfig": "alien.Config", "AutoModelForCausalLM": "alien.Model"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "alien.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    code, error = run_main(main, "eval", model, *EVALUATION, "--output", tmp_path / "out")
    assert code == 2 and str(model) in error and "Traceback" not in error
    assert not mark.exists()
