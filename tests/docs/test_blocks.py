"""Python and YAML on the documentation's pages: Python runs, YAML is a valid part of a config or plan."""

import json

import pytest
import torch
import yaml

from entrodrop_tune.config import validate
from tests.docs.markdown import PAGES, blocks

BLOCKS = [block for page in PAGES for block in blocks(page)]
SKELETON = {
    "output_dir": "run",
    "model": {"path": "model"},
    "data": {"train": "train.jsonl"},
    "epochs": 1,
    "batch_size": 1,
    "optimizer": {"_component_": "torch.optim.AdamW"},
}


def of(language):
    return pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == language], ids=lambda b: b.place)


def test_every_language_has_its_test():
    assert {block.language for block in BLOCKS} <= {"", "bash", "python", "yaml", "json"}


@of("python")
def test_python_runs_a_step(block):
    """The excerpts are of a loop: what surrounds them is given, and the weights get a gradient."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 16, bias=False)
    given = {
        "hidden": torch.randn(12, 8, requires_grad=True),
        "lm_head": head,
        "labels": torch.randint(0, 16, (12,)),
        "sample_ids": torch.arange(12),
        "positions": torch.arange(12),
        "epoch": 1,
        "epochs": 4,
        "progress": 0.5,
    }
    exec(compile(block.text, block.place, "exec"), given)
    assert head.weight.grad is not None and head.weight.grad.abs().sum() > 0


@of("yaml")
def test_yaml_is_valid(block):
    content = yaml.safe_load(block.text)
    if "loss" in content:  # a stock torchtune recipe's config
        from omegaconf import OmegaConf
        from torchtune.config import instantiate

        instantiate(OmegaConf.create(content["loss"]))
    elif "title" in content:
        from entrodrop_tune.analysis.sweep_plan import Plan

        plan = validate(Plan, content)
        assert plan.arms and plan.sized("minutes")
    else:
        from entrodrop_tune.training.config import RunConfig

        merged = {**SKELETON, **content}
        merged["data"] = {**SKELETON["data"], **content.get("data", {})}
        validate(RunConfig, merged)


@of("json")
def test_json_is_valid(block):
    for line in block.text.splitlines():
        json.loads(line)
