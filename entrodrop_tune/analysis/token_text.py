"""The text of single tokens, as it stands in the middle of a text."""

from collections.abc import Iterable
from typing import Any


class TokenText:
    """Token ids to text pieces whose concatenation is the decoded text (a character split over tokens becomes "�").

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.all_special_ids)
        # Decoded alone, a SentencePiece token would lose its leading space: so decode it after an anchor.
        self._anchor = tokenizer.encode("a", add_special_tokens=False)
        self._anchor_text = self._decode(self._anchor)
        self._known: dict[int, str] = {}

    def __call__(self, ids: Iterable[int]) -> list[str]:
        return [self._piece(int(token)) for token in ids]

    def _piece(self, token: int) -> str:
        if token not in self._known:
            text = self._decode([*self._anchor, token])
            self._known[token] = text.removeprefix(self._anchor_text)
        return self._known[token]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
