"""Entropy-guided token dropout under TRL's ``SFTTrainer``: TRL prepares the data, the loss is ours.

    python examples/trl_sft.py MODEL_DIR train.jsonl [EPOCHS]

The file holds a {"question": ..., "answer": ...} a line; answers are learnt. Needs ``pip install trl``.
"""

import sys

import torch
from datasets import Dataset, load_dataset
from transformers_trainer import EntroDropTrainer
from trl import SFTConfig, SFTTrainer

from entrodrop_tune.method import IGNORE_INDEX


class EntroDropSFTTrainer(EntroDropTrainer, SFTTrainer):
    """An ``SFTTrainer`` with the loss of :class:`EntroDropTrainer`, and its limits; without packing or adapters."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.args.packing or self.args.padding_free:
            raise ValueError("EntroDropSFTTrainer: packing and padding_free must be off: a row must be a sample")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        tokens, labels = inputs["input_ids"], inputs["labels"]
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        ours = {
            "input_ids": tokens,
            "attention_mask": inputs["attention_mask"],
            # TRL leaves the shift to the model: label t is that of token t.
            "labels": torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1),
            "sample_ids": _content_ids(tokens * inputs["attention_mask"]).unsqueeze(1).expand_as(tokens),
            "positions": positions,
        }
        return super().compute_loss(model, ours, return_outputs, num_items_in_batch)


def _content_ids(tokens: torch.Tensor) -> torch.Tensor:
    """A 64-bit polynomial hash of each row, ``[B, T]`` -> ``[B]``; zeros on the right do not change it."""
    powers = torch.full((tokens.shape[1],), 6364136223846793005, device=tokens.device).cumprod(0)  # wraps
    return (tokens * powers).sum(dim=1)


def conversations(path: str) -> Dataset:
    """Rows in TRL's prompt-completion form, so that only the answer is learnt."""
    rows = load_dataset("json", data_files=path, split="train")
    return rows.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        },
        remove_columns=rows.column_names,
    )


def main(model_dir: str, data: str, epochs: int = 3, output_dir: str = "trl-run", **options) -> EntroDropSFTTrainer:
    arguments = SFTConfig(
        output_dir,
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=torch.cuda.is_available(),  # TRL turns it on, and refuses to on a CPU
        model_init_kwargs={"dtype": torch.float32},
    )
    trainer = EntroDropSFTTrainer(model_dir, arguments, train_dataset=conversations(data), **options)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
