"""Entropy-guided token dropout in a plain PyTorch loop, on any causal model of transformers.

    python examples/plain_pytorch.py MODEL_DIR train.jsonl [EPOCHS]

The file holds a {"question": ..., "answer": ...} a line; answers are learnt. `train` is the whole method.
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrodrop_tune.method import IGNORE_INDEX, Curriculum, QuantileSketch, TokenSelector, linear_cross_entropy


def train(model, samples, epochs: int, batch_size: int = 4, lr: float = 1e-4, seed: int = 0) -> list[dict]:
    """``samples``: (tokens, labels) pairs, labels already shifted. Returns a record an optimizer step."""
    curriculum = Curriculum.from_config({"preset": "ramp"})
    selector, sketch = TokenSelector("entropy", seed=seed), QuantileSketch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    shuffle = torch.Generator().manual_seed(seed)
    log = []
    for epoch in range(epochs):
        quantile, drop_rate = curriculum.at(curriculum.progress(epoch=epoch, epochs=epochs, step=0, steps=1))
        for ids in torch.randperm(len(samples), generator=shuffle).split(batch_size):
            tokens = pad_sequence([samples[i][0] for i in ids], batch_first=True)
            labels = pad_sequence([samples[i][1] for i in ids], batch_first=True, padding_value=IGNORE_INDEX)
            # Who each token is: its sample and its place in it. That, and not the batch, decides its coin.
            sample_ids = ids.unsqueeze(1).expand_as(tokens).flatten()
            positions = torch.arange(tokens.shape[1]).expand_as(tokens).flatten()
            select = selector.at(epoch, sketch.quantile(quantile), drop_rate).bind(sample_ids, positions)

            hidden = model.model(tokens).last_hidden_state.flatten(0, 1)
            out = linear_cross_entropy(hidden, model.lm_head.weight, labels.flatten(), select)
            if out.kept > 0:
                (out.loss_sum / out.kept).backward()
                optimizer.step()
                optimizer.zero_grad()
            sketch.update(out.entropy)
            sketch.commit()
            log.append(
                {"epoch": epoch, "nll": float(out.nll.nanmean()), "kept": int(out.kept), "valid": int(out.valid)}
            )
    return log


def tokenize(tokenizer, path: str | Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(tokens, shifted labels) of each line: the answer's tokens are targets, the question's are not."""
    samples = []
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
        tokens = torch.tensor(tokenizer.apply_chat_template(messages, return_dict=False))
        labels = tokens[1:].clone()
        labels[: len(prompt) - 1] = IGNORE_INDEX
        samples.append((tokens[:-1], labels))
    return samples


if __name__ == "__main__":
    model_dir, data = sys.argv[1:3]
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).train()
    samples = tokenize(AutoTokenizer.from_pretrained(model_dir), data)
    for record in train(model, samples, epochs=int(sys.argv[3]) if len(sys.argv) > 3 else 3):
        print("epoch {epoch}  nll {nll:.3f}  kept {kept}/{valid}".format(**record))
