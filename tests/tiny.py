"""Tiny random models and a tiny trained tokenizer, made offline in well under a second."""

import json
from pathlib import Path

import torch

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
    "How many clips did Natalia sell altogether in April and May? 48/2 = <<48/2=24>>24 clips in May.",
    "def add(a, b):\n    return a + b\n\nassert add(1, 2) == 3\n",
    "The study included 120 patients; the answer is yes. #### 72",
    "system user assistant question answer " * 4,
]


def tiny_tokenizer(vocab_size: int = 384):
    """A byte-level BPE tokenizer with the ChatML template; ``<|endoftext|>`` is id 0 and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
        model_max_length=512,
    )


def tiny_model_dir(path: Path, seed: int = 0, **config) -> Path:
    """Save a random 2-layer Llama with its tokenizer as a Hugging Face directory at ``path``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **config}))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Path(path)


def tiny_dataset(path: Path, rows: int = 12, offset: int = 0) -> Path:
    """Write ``rows`` GSM8K-like question/answer pairs as JSONL."""
    path = Path(path)
    with path.open("w") as file:
        for i in range(offset, offset + rows):
            answer = f"{i} + {i + 1} = <<{i}+{i + 1}={2 * i + 1}>>{2 * i + 1}\n#### {2 * i + 1}"
            file.write(json.dumps({"question": f"What is {i} plus {i + 1}?", "answer": answer}) + "\n")
    return path
