"""The TRL example: its loss is TRL's own where nothing is dropped, and drops by the curriculum's rule."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from entrodrop_tune.method import token_entropy, uniform_coins

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import trl_sft

    yield trl_sft
    for name in ("trl_sft", "transformers_trainer"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_loss_is_the_models_own_less_what_is_dropped(example, lively_model, tiny_data, tmp_path):
    trainer = example.main(
        str(lively_model),
        str(tiny_data / "train.jsonl"),
        epochs=2,
        output_dir=str(tmp_path),
        curriculum={"preset": "constant"},
    )
    batch = next(iter(trainer.get_train_dataloader()))
    model, labels = trainer.model.eval(), F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        output = model(**batch)
        evaluated = trainer.compute_loss(model, dict(batch))
        threshold = trainer.sketch.quantile(0.5)
        trained = trainer.compute_loss(model.train(), dict(batch))
    assert torch.allclose(evaluated, output.loss, rtol=1e-5)

    ids = example._content_ids(batch["input_ids"] * batch["attention_mask"])
    assert len(set(ids.tolist())) == len(ids)
    shorter = example._content_ids(batch["input_ids"][:, :20])
    padded = example._content_ids(F.pad(batch["input_ids"][:, :20], (0, 7)))
    assert torch.equal(shorter, padded)
    positions = torch.arange(labels.shape[1]).expand_as(labels)
    coins = uniform_coins(
        trainer.args.seed, 1, ids.unsqueeze(1).expand_as(labels).flatten(), positions.flatten()
    ).view_as(labels)
    dropped = (labels != -100) & (token_entropy(output.logits) < threshold) & (coins < 0.5)
    expected = F.cross_entropy(output.logits.flatten(0, 1), labels.masked_fill(dropped, -100).flatten())
    assert dropped.any() and torch.allclose(trained, expected, rtol=1e-4)


def test_packing_is_refused(example, tiny_model, tiny_data, tmp_path):
    from trl import SFTConfig

    arguments = SFTConfig(str(tmp_path), packing=True, bf16=False, report_to=[])
    with pytest.raises(ValueError, match="packing"):
        example.EntroDropSFTTrainer(
            str(tiny_model), arguments, train_dataset=example.conversations(str(tiny_data / "train.jsonl"))
        )
