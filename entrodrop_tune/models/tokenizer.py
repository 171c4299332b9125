"""The model's own tokenizer, by transformers."""

from pathlib import Path
from typing import Any

from entrodrop_tune.errors import UserError
from entrodrop_tune.models.architecture import model_directory, read_config


def load_tokenizer(path: str | Path) -> Any:
    """The fast tokenizer in ``path``, never running code from the folder.

    Raises:
        UserError: no fast tokenizer in the folder, or one that does not fit the model or never ends a sequence.
    """
    from transformers import AutoTokenizer

    folder = model_directory(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("A wrong setting may show at the first text only.")
    except Exception as error:  # transformers and tokenizers raise all kinds of errors on broken files
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot load a tokenizer from {folder} (tokenizer.json missing or broken): {reason}") from None
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in {folder} has no fast version: save it with a tokenizer.json.")
    vocabulary = read_config(folder / "config.json").get("vocab_size")
    if isinstance(vocabulary, int) and len(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, but the model only {vocabulary} embeddings: "
            "they do not belong together, or tokens were added without resizing the model."
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f'the tokenizer in {folder} has no eos_token: set one in "tokenizer_config.json".')
    return tokenizer


def pad_id(tokenizer: Any) -> int:
    """The id used to pad; padding is never attended to nor learned, so the end-of-sequence id may stand in."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
