"""The examples run, learn, and drop what their curriculum says."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from entrodrop_tune.method import linear_cross_entropy, token_entropy, uniform_coins

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parts(tiny_model, tiny_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    example = load("plain_pytorch")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
    samples = example.tokenize(AutoTokenizer.from_pretrained(tiny_model), tiny_data / "train.jsonl")
    return example, model, samples


def test_labels_are_shifted_and_cover_the_answer(parts, tiny_model, tiny_data):
    """Our loss on the example's labels is transformers' own on unshifted ones."""
    _, model, samples = parts
    tokens, labels = samples[0]
    with torch.no_grad():
        out = linear_cross_entropy(model.model(tokens[None]).last_hidden_state[0], model.lm_head.weight, labels)
        whole = torch.cat([tokens[:1], torch.where(labels == -100, tokens.new_tensor(-100), labels)])
        whole[0] = -100
        expected = model(input_ids=torch.cat([tokens, labels[-1:]])[None], labels=whole[None]).loss
    assert torch.allclose(out.loss_sum / out.valid, expected, rtol=1e-5)
    from transformers import AutoTokenizer

    answer = AutoTokenizer.from_pretrained(tiny_model).decode(labels[labels != -100])
    assert json.loads((tiny_data / "train.jsonl").read_text().splitlines()[0])["answer"] in answer


def test_plain_loop_learns_and_ramps(parts):
    example, model, samples = parts
    log = example.train(model, samples, epochs=5, lr=3e-3)
    by_epoch = [[r for r in log if r["epoch"] == e] for e in range(5)]
    nll = [sum(r["nll"] for r in rows) / len(rows) for rows in by_epoch]
    dropped = [1 - sum(r["kept"] for r in rows) / sum(r["valid"] for r in rows) for rows in by_epoch]
    assert nll[-1] < nll[0] - 0.5
    assert dropped[0] == 0.0 and dropped[-1] > 0.15, dropped


def test_trainer_drops_in_training_and_not_in_evaluation(tiny_model, tiny_data, tmp_path):
    example = load("transformers_trainer")
    trainer = example.main(
        str(tiny_model),
        str(tiny_data / "train.jsonl"),
        epochs=3,
        output_dir=str(tmp_path),
        curriculum={"preset": "constant"},
    )
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 9 and all(float(loss) > 0 for loss in losses)
    batch = {name: value.to(trainer.model.device) for name, value in example.collate(trainer.eval_dataset).items()}
    labels = batch["labels"].flatten()
    with torch.no_grad():
        logits = trainer.model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.flatten(0, 1)
        evaluated = trainer.compute_loss(trainer.model, batch)
        threshold = trainer.sketch.quantile(0.5)
        trained = trainer.compute_loss(trainer.model.train(), batch)
    assert torch.allclose(evaluated, F.cross_entropy(logits, labels), rtol=1e-5)
    coins = uniform_coins(trainer.args.seed, 2, batch["sample_ids"].flatten(), batch["positions"].flatten())
    dropped = (token_entropy(logits) < threshold) & (coins < 0.5)
    assert dropped.any() and torch.allclose(
        trained, F.cross_entropy(logits, labels.masked_fill(dropped, -100)), rtol=1e-5
    )
    assert "eval_loss" in trainer.evaluate()


def test_trainer_refuses_what_it_would_get_wrong(tiny_model, tiny_data, tmp_path):
    from transformers import AutoModelForCausalLM, TrainingArguments

    example = load("transformers_trainer")
    arguments = TrainingArguments(str(tmp_path), gradient_accumulation_steps=2, report_to=[])
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        example.EntroDropTrainer(AutoModelForCausalLM.from_pretrained(tiny_model), arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain_pytorch", "transformers_trainer"])
def test_from_the_command_line(name, tiny_model, tiny_data, tmp_path):
    command = [sys.executable, EXAMPLES / f"{name}.py", tiny_model, tiny_data / "train.jsonl", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("kept" if name == "plain_pytorch" else "loss") in done.stdout
