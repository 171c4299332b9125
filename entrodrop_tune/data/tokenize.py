"""Conversations → tokens and the mask of tokens to learn (what the assistant says, with its end-of-turn token)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrodrop_tune.data.conversation import Conversation, Message, RowError
from entrodrop_tune.errors import UserError

_NO_WORDS = "\0"
"""Occurs in no template."""


@dataclass(frozen=True)
class Tokens:
    """Token ids int32 ``[T]`` and, bool ``[T]``, which of them are to be learned."""

    ids: NDArray[np.int32]
    is_target: NDArray[np.bool_]


class ConversationTokenizer:
    """Applies a tokenizer and its chat template.

    Targets come from the template's ``{% generation %}`` blocks where it has them. Otherwise the assistant's words
    are located in the rendered text: a turn starts where the rendering of what precedes it (with the generation
    prompt) ends, verified to be a prefix, and ends with its end-of-turn token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        self._has_template = template is not None
        self._has_generation_blocks = template is not None and "{% generation" in template.replace("{%-", "{%")
        self._special = set(tokenizer.all_special_ids)

    def __call__(self, conversation: Conversation) -> Tokens:
        """Tokenise one row.

        Raises:
            RowError: the chat template refuses the row, or nothing in it can be learned.
        """
        if isinstance(conversation, str):
            tokens = self._text(conversation)
        else:
            tokens = self._chat(conversation) if self._has_template else self._plain(conversation)
        if not tokens.is_target[1:].any():
            raise RowError("empty", "no token is left to learn")
        return tokens

    def _text(self, text: str) -> Tokens:
        ids = self._tokenizer(text)["input_ids"]
        if not ids or ids[-1] != self._tokenizer.eos_token_id:
            ids = [*ids, self._tokenizer.eos_token_id]
        return _tokens(ids, np.ones(len(ids), dtype=np.bool_))

    def _plain(self, messages: list[Message]) -> Tokens:
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise UserError(
                "this model's tokenizer has no chat template, so only rows with one prompt and one response can be "
                "used, without system prompt: put a chat_template.jinja into the model folder for conversations."
            )
        prompt, response = (message["content"] for message in messages)
        head = self._tokenizer(prompt)["input_ids"]
        if head and head[-1] == self._tokenizer.eos_token_id:
            head = head[:-1]
        tail = self._tokenizer(response, add_special_tokens=False)["input_ids"]
        ids = [*head, *tail, self._tokenizer.eos_token_id]
        return _tokens(ids, np.arange(len(ids)) >= len(head))

    def _chat(self, messages: list[Message]) -> Tokens:
        if self._has_generation_blocks:
            return self._chat_by_generation_blocks(messages)
        text = self._render(messages)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        is_target = np.zeros(len(ids), dtype=np.bool_)
        for start, end in self._assistant_spans(messages, text):
            self._mark(is_target, ids, offsets, start, end)
        if messages[-1]["role"] == "assistant" and is_target.any():
            last = int(np.flatnonzero(is_target)[-1])
            if ids[last] not in self._special:
                # The template never ends a turn: learn what it puts after the answer, then to stop.
                ids = [*ids, self._tokenizer.eos_token_id]
                is_target = np.append(is_target, True)
                is_target[last:] = True
        return _tokens(ids, is_target)

    def _chat_by_generation_blocks(self, messages: list[Message]) -> Tokens:
        from jinja2 import TemplateError

        try:
            encoded = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except TemplateError as error:
            raise RowError("malformed", f"the chat template refuses the row: {error}") from None
        return _tokens(encoded["input_ids"], np.asarray(encoded["assistant_masks"], dtype=np.bool_))

    def _render(self, messages: list[Message], generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt
            )
        except TemplateError as error:
            raise RowError("malformed", f"the chat template refuses the row: {error}") from None

    def _assistant_spans(self, messages: list[Message], text: str) -> list[tuple[int, int]]:
        """Character ranges of the assistant's words in ``text``, from after the generation prompt."""
        spans, cursor = [], 0
        for index, message in enumerate(messages):
            content, start = message["content"].strip(), None
            if message["role"] == "assistant":
                prefix = self._preceding(messages, index)
                if len(prefix) >= cursor and text.startswith(prefix):
                    start = cursor = len(prefix)
            at = text.find(content, cursor)
            if message["role"] == "assistant":
                if at < 0:
                    raise RowError("malformed", f"the chat template changes the words of message {index + 1}")
                spans.append((at if start is None else start, at + len(content)))
            if at >= 0:
                cursor = at + len(content)
        return spans

    def _preceding(self, messages: list[Message], index: int) -> str:
        """What the model is given before it speaks as message ``index``."""
        if index:
            return self._render(messages[:index], generation_prompt=True)
        # Many templates cannot render an empty conversation: take what they put before other words in its place.
        opening = {**messages[0], "content": _NO_WORDS}
        return self._render([opening, *messages[1:]]).partition(_NO_WORDS)[0]

    def _mark(
        self,
        is_target: NDArray[np.bool_],
        ids: list[int],
        offsets: list[tuple[int, int]],
        start: int,
        end: int,
    ) -> None:
        # A token that straddles the start (the prompt's last space and the first word) holds some of the answer.
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > max(a, start)]
        if not inside:
            return
        is_target[inside] = True
        for i in range(inside[-1] + 1, len(ids)):
            if ids[i] in self._special:
                is_target[inside[-1] : i + 1] = True
                return
            if offsets[i][1] > offsets[i][0] and not self._is_space(ids[i]):
                return

    def _is_space(self, token: int) -> bool:
        return not self._tokenizer.decode([token]).strip()


def _tokens(ids: list[int], is_target: NDArray[np.bool_]) -> Tokens:
    return Tokens(np.asarray(ids, dtype=np.int32), is_target)
