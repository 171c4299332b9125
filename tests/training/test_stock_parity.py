"""With nothing dropped, 20 steps of our recipes give the losses of torchtune's own recipes on the same data.

And with our loss set in torchtune's recipe they drop the same tokens.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
import torchtune
from omegaconf import OmegaConf
from torch.utils.data import Dataset

from entrodrop_tune.config import load_mapping, validate
from entrodrop_tune.data import epoch_rows, load_data
from entrodrop_tune.models import load_model, load_tokenizer
from entrodrop_tune.training.config import RunConfig
from entrodrop_tune.training.launch import run_training
from tests.tiny import tiny_dataset, tiny_model_dir
from tests.training.runs import ADAPTER, TINY, lines, overrides

STEPS, BATCH = 20, 2


class FixedRows(Dataset):
    """Tokenized rows from a JSON file, for torchtune's collator."""

    def __init__(self, _tokenizer, path: str) -> None:
        self.rows = json.loads(Path(path).read_text())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


class PadOnly:
    """All that torchtune's recipe asks of a tokenizer once rows are tokenized."""

    pad_id = 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("parity") / "model", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_dataset(folder / "train.jsonl", STEPS * BATCH)
    tiny_dataset(folder / "validation.jsonl", 2, offset=1000)
    return folder


def our_config(model, data, output, *more) -> RunConfig:
    settings = ["entrodrop.select=none", "entrodrop.preset=constant", "epochs=1", f"batch_size={BATCH}"]
    settings += ["clip_grad_norm=null", "lr_scheduler.name=constant", "lr_scheduler.warmup_fraction=0"]
    return validate(RunConfig, load_mapping(TINY, overrides(model, data, output, *settings, *more)))


def our_losses(recipe, config) -> list[float]:
    assert run_training(recipe, config) == 0
    return [row["loss"] for row in lines(config.output_dir / "metrics.jsonl")]


def stock_config(config: RunConfig, folder: Path, model_component: dict):
    """torchtune's configuration of the same run, on our order of the rows."""
    rows = epoch_rows(load_data(config.data, load_tokenizer(config.model.path), progress=False), config.seed, 0)
    rows_file = folder / "rows.json"
    as_torchtune = [
        {
            "tokens": sample.tokens.tolist(),
            "labels": [int(t) if hit else -100 for t, hit in zip(sample.tokens, sample.is_target, strict=True)],
        }
        for (sample,) in rows
    ]
    rows_file.write_text(json.dumps(as_torchtune))
    hf = json.loads((Path(config.model.path) / "config.json").read_text())
    architecture = {
        "vocab_size": hf["vocab_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "num_kv_heads": hf["num_key_value_heads"],
        "embed_dim": hf["hidden_size"],
        "intermediate_dim": hf["intermediate_size"],
        "max_seq_len": hf["max_position_embeddings"],
        "norm_eps": hf["rms_norm_eps"],
    }
    return OmegaConf.create(
        {
            "output_dir": str(folder / "stock"),
            "model": {**model_component, **architecture},
            "tokenizer": {"_component_": "tests.training.test_stock_parity.PadOnly"},
            "checkpointer": {
                "_component_": "torchtune.training.FullModelHFCheckpointer",
                "checkpoint_dir": config.model.path,
                "checkpoint_files": ["model.safetensors"],
                "output_dir": str(folder / "stock"),
                "model_type": "LLAMA2",
            },
            "resume_from_checkpoint": False,
            "dataset": {"_component_": "tests.training.test_stock_parity.FixedRows", "path": str(rows_file)},
            "seed": 0,
            "shuffle": False,
            "batch_size": BATCH,
            "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
            "lr_scheduler": {
                "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
                "num_warmup_steps": 0,
                "num_cycles": 0,  # a cosine that never moves: a constant rate
            },
            "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
            "epochs": 1,
            "max_steps_per_epoch": None,
            "gradient_accumulation_steps": 1,
            "optimizer_in_bwd": False,
            "compile": False,
            "device": "cpu",
            "dtype": "fp32",
            "metric_logger": {
                "_component_": "torchtune.training.metric_logging.DiskLogger",
                "log_dir": str(folder / "logs"),
            },
            "log_every_n_steps": 1,
        }
    )


def stock_recipe(name: str, class_name: str, config):
    """torchtune's recipe class, loaded from its file: its ``recipes`` package refuses to be imported."""
    path = Path(torchtune.__file__).parent.parent / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, class_name)(config)


def stock_losses(recipe, config) -> list[float]:
    recipe.train()
    log = next(Path(config.metric_logger.log_dir).glob("*.txt")).read_text()
    return [float(value) for value in re.findall(r"loss:([\d.eE+-]+)", log)]


@pytest.mark.slow
def test_full_finetune(model, data, tmp_path):
    config = our_config(model, data, tmp_path / "ours")
    stock = stock_config(config, tmp_path, {"_component_": "torchtune.models.llama2.llama2"})
    recipe = stock_recipe("full_finetune_single_device", "FullFinetuneRecipeSingleDevice", stock)
    recipe.setup(stock)
    theirs, ours = stock_losses(recipe, stock), our_losses("full_finetune", config)
    assert len(ours) == len(theirs) == STEPS
    assert theirs[-1] < theirs[0] - 0.1, "the model did not learn, so agreement would mean nothing"
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_loss_for_stock_recipes_drops_what_ours_drop(data, tmp_path):
    # Large weights: entropies on both sides of the threshold from the first step on.
    model = tiny_model_dir(tmp_path / "model", tie_word_embeddings=False, initializer_range=0.4)
    dropping = ["entrodrop.select=entropy", "entrodrop.threshold={nats: 3.8}", "entrodrop.drop_rate=1.0"]
    config = our_config(model, data, tmp_path / "ours", *dropping)
    stock = stock_config(config, tmp_path, {"_component_": "torchtune.models.llama2.llama2"})
    stock.loss = {"_component_": "entrodrop_tune.method.EntroDropLoss", "threshold": 3.8, "drop_rate": 1.0}
    recipe = stock_recipe("full_finetune_single_device", "FullFinetuneRecipeSingleDevice", stock)
    recipe.setup(stock)
    theirs, ours = stock_losses(recipe, stock), our_losses("full_finetune", config)
    kept = [row["kept_fraction"] for row in lines(config.output_dir / "metrics.jsonl")]
    assert 0 < min(kept) < max(kept) < 1
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_lora_finetune(model, data, tmp_path):
    config = our_config(model, data, tmp_path / "ours", *ADAPTER, "optimizer.lr=0.005")
    component = {
        "_component_": "torchtune.models.llama2.lora_llama2",
        "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
        "apply_lora_to_mlp": True,
        "lora_rank": 4,
        "lora_alpha": 8,
    }
    stock = stock_config(config, tmp_path, component)
    stock.optimizer.lr = 0.005
    recipe = stock_recipe("lora_finetune_single_device", "LoRAFinetuneRecipeSingleDevice", stock)
    recipe.setup(stock)
    torch.manual_seed(config.seed)
    start = load_model(config.model, config.adapter)
    # The same random A; B is zero, so the order of q's and k's output rows does not matter.
    adapters = {name: p.detach() for name, p in start.named_parameters() if p.requires_grad}
    recipe._model.load_state_dict(adapters, strict=False)
    theirs, ours = stock_losses(recipe, stock), our_losses("lora_finetune", config)
    assert len(ours) == len(theirs) == STEPS
    assert theirs[-1] < theirs[0] - 0.1, "the model did not learn, so agreement would mean nothing"
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-4)
