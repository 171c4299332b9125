"""A config names classes (``_component_``); it cannot make anything else be imported or called."""

import pytest
import torch

from entrodrop_tune.errors import UserError
from entrodrop_tune.training.components import build_component
from entrodrop_tune.training.config import Component

PARAMETERS = [torch.nn.Parameter(torch.zeros(2))]


def optimizer(path: str, **arguments):
    component = Component.model_validate({"_component_": path, **arguments})
    return build_component("optimizer", component, torch.optim.Optimizer, PARAMETERS)


@pytest.mark.parametrize("path", ["torch.optim.AdamW", "torch.optim.adamw.AdamW", "torchao.optim.AdamW8bit"])
def test_optimizers_of_installed_packages_are_built(path):
    assert isinstance(optimizer(path, lr=1e-3), torch.optim.Optimizer)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os.system", 'no installed package provides "os"'),
        ("builtins.eval", 'no installed package provides "builtins"'),
        ("subprocess.run", 'no installed package provides "subprocess"'),
        ("torch.load", "must be a subclass of torch.optim.optimizer.Optimizer"),
        ("torch.os.system", "must be a subclass of"),
        ("torch.nn.Linear", "must be a subclass of"),
        ("torch.optim.AdamX", "cannot be built: AttributeError"),
        ("torch.nowhere.AdamW", "cannot be built"),
        ("nosuchpackage.AdamW", 'no installed package provides "nosuchpackage"'),
    ],
)
def test_anything_else_is_refused_before_it_is_called(path, message):
    with pytest.raises(UserError) as caught:
        optimizer(path, lr=1e-3)
    assert message in str(caught.value) and path in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_in_the_working_directory_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match='no installed package provides "planted"'):
        optimizer("planted.AdamW")
    assert not (tmp_path / "ran").exists()


def test_a_component_within_a_component_is_plain_data(tmp_path):
    with pytest.raises(UserError, match="cannot be built"):
        optimizer("torch.optim.AdamW", lr={"_component_": "os.mkdir", "path": str(tmp_path / "ran")})
    assert not (tmp_path / "ran").exists()
