"""Entropy-guided token dropout in a Transformers ``Trainer``: everything happens in ``compute_loss``.

    python examples/transformers_trainer.py MODEL_DIR train.jsonl [EPOCHS]

The file holds a {"question": ..., "answer": ...} a line; answers are learnt.
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from entrodrop_tune.method import IGNORE_INDEX, Curriculum, QuantileSketch, TokenSelector, linear_cross_entropy


class EntroDropTrainer(Trainer):
    """A ``Trainer`` whose loss drops low-entropy tokens. For one process, without gradient accumulation.

    The loss is a mean over *kept* tokens, and how many a later microbatch keeps is not known yet. The project's own
    recipes divide after all microbatches and ranks; a ``Trainer`` divides before.

    Args:
        curriculum: config of :class:`Curriculum`.
        selection: keyword arguments of :class:`TokenSelector`.
    """

    def __init__(self, *args, curriculum: dict | None = None, selection: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.args.gradient_accumulation_steps != 1 or self.args.world_size != 1:
            raise ValueError("EntroDropTrainer: gradient_accumulation_steps and the number of processes must be 1")
        self.curriculum = Curriculum.from_config(curriculum or {"preset": "ramp"})
        self.selector = TokenSelector(**{"seed": self.args.seed, **(selection or {})})
        self.sketch = QuantileSketch()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"].flatten()
        hidden = model.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        select = self._select(inputs["sample_ids"].flatten(), inputs["positions"].flatten()) if model.training else None
        out = linear_cross_entropy(hidden.flatten(0, 1), model.get_output_embeddings().weight, labels, select)
        if model.training:
            self.sketch.update(self.selector.statistic(out.entropy, out.nll))
            self.sketch.commit()
        count = getattr(out, self.selector.normalizer)
        loss = out.loss_sum / count.clamp(min=1)
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    def _select(self, sample_ids, positions):
        epochs = int(self.args.num_train_epochs)
        epoch = min(int(self.state.epoch or 0), epochs - 1)
        progress = self.curriculum.progress(
            epoch=epoch, epochs=epochs, step=self.state.global_step, steps=self.state.max_steps
        )
        threshold, drop_rate = self.curriculum.at(progress)
        if self.curriculum.unit == "quantile":
            nats, fraction = self.sketch.quantile(threshold), threshold
        else:
            nats, fraction = threshold, self.sketch.rank(threshold)
        return self.selector.at(epoch, nats, drop_rate, fraction).bind(sample_ids, positions)


def tokenize(tokenizer, path: str | Path) -> list[dict]:
    """A dict of tensors a line; labels are shifted here, so the model's own shift is not used."""
    samples = []
    for number, line in enumerate(Path(path).read_text().splitlines()):
        row = json.loads(line)
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
        tokens = torch.tensor(tokenizer.apply_chat_template(messages, return_dict=False))
        labels = tokens[1:].clone()
        labels[: len(prompt) - 1] = IGNORE_INDEX
        samples.append(
            {
                "input_ids": tokens[:-1],
                "labels": labels,
                "attention_mask": torch.ones_like(labels),
                "sample_ids": torch.full_like(labels, number),
                "positions": torch.arange(len(labels)),
            }
        )
    return samples


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    def pad(name: str) -> torch.Tensor:
        value = IGNORE_INDEX if name == "labels" else 0
        return pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=value)

    return {name: pad(name) for name in samples[0]}


def main(model_dir: str, data: str, epochs: int = 3, output_dir: str = "trainer-run", **options) -> EntroDropTrainer:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    samples = tokenize(AutoTokenizer.from_pretrained(model_dir), data)
    arguments = TrainingArguments(
        output_dir,
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,  # sample_ids and positions are for the loss, not for the model
        prediction_loss_only=True,
    )
    trainer = EntroDropTrainer(
        model, arguments, data_collator=collate, train_dataset=samples, eval_dataset=samples, **options
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
