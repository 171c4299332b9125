"""Rows → conversations (or plain text): column detection, templates, chat styles."""

import re
from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from entrodrop_tune.data.config import Columns, Template
from entrodrop_tune.errors import UserError, did_you_mean

Message = dict[str, str]
Conversation = list[Message] | str
"""Chat messages with ``role`` and ``content``, or plain text."""

# Tried in this order; the first that a data set has in full is used.
_MESSAGES = ("messages", "conversations", "conversation")
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
)
_TEXT = ("text", "content")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


class RowError(ValueError):
    """A row that is no sample; ``kind`` is malformed, empty or too_long."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def resolve_columns(columns: Columns, template: Template, present: Iterable[str], where: str) -> Columns:
    """Fill in what ``columns`` leaves out from the names found in the data.

    Args:
        columns: As configured.
        template: Its format strings replace the prompt or response column.
        present: Column names that occur in the data.
        where: The source's name, for messages.

    Raises:
        UserError: a named column or template field does not occur, or no known names do.
    """
    names = set(present)
    _check_template(template, names, where)
    for field, name in columns:
        if name is not None and name not in names:
            raise UserError(f'data.columns.{field} = "{name}" is no column of {where}.{did_you_mean(name, names)}')
    if columns.text is not None:
        return columns
    if columns.system is None and "system" in names:
        columns = columns.model_copy(update={"system": "system"})
    if columns.messages is not None:
        return columns
    has_prompt, has_response = columns.prompt or template.prompt, columns.response or template.response
    if not has_prompt and not has_response:
        return _detect(columns, names, where)
    if not has_prompt:
        others = (prompt for prompt, _ in _PAIRS if prompt in names and prompt != columns.response)
        columns = columns.model_copy(update={"prompt": _first(others, "prompt", names, where)})
    if not has_response:
        others = (response for _, response in _PAIRS if response in names and response != columns.prompt)
        columns = columns.model_copy(update={"response": _first(others, "response", names, where)})
    return columns


def _first(candidates: Iterable[str], field: str, names: set[str], where: str) -> str:
    for name in candidates:
        return name
    raise UserError(f"data.columns.{field} is needed too: {where} has the columns {', '.join(sorted(names))}.")


def _detect(columns: Columns, names: set[str], where: str) -> Columns:
    for name in _MESSAGES:
        if name in names:
            return columns.model_copy(update={"messages": name})
    for prompt, response in _PAIRS:
        if {prompt, response} <= names:
            extra = "input" if "input" in names and prompt == "instruction" else None
            return columns.model_copy(update={"prompt": prompt, "response": response, "input": extra})
    for name in _TEXT:
        if name in names:
            return columns.model_copy(update={"text": name})
    raise UserError(
        f"{where} has the columns {', '.join(sorted(names)) or '(none)'}, and none of the usual names: set "
        "data.columns.prompt and data.columns.response (or data.columns.messages, or data.columns.text)."
    )


def _check_template(template: Template, names: set[str], where: str) -> None:
    for key, pattern in template:
        if pattern is None:
            continue
        try:
            fields = [name for _, name, _, _ in Formatter().parse(pattern) if name is not None]
        except ValueError as error:
            raise UserError(f"data.template.{key}: {error} (write {{{{ and }}}} for literal braces).") from None
        for name in (re.split(r"[.\[]", field, maxsplit=1)[0] for field in fields):
            if name not in names:
                raise UserError(
                    f"data.template.{key} uses {{{name}}}, which is no column of {where}.{did_you_mean(name, names)}"
                )


def to_conversation(
    row: Mapping[str, Any], columns: Columns, template: Template, system_prompt: str | None
) -> Conversation:
    """Turn one row into messages, or into plain text.

    Raises:
        RowError: a value is missing, empty or of the wrong type.
    """
    if columns.text is not None:
        return _string(row, columns.text)
    if columns.messages is not None:
        messages = _messages(row, columns.messages)
    else:
        messages = [
            {"role": "user", "content": _prompt(row, columns, template)},
            {"role": "assistant", "content": _fill(row, columns.response, template.response)},
        ]
    system = _optional(row, columns.system) or system_prompt
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _prompt(row: Mapping[str, Any], columns: Columns, template: Template) -> str:
    prompt = _fill(row, columns.prompt, template.prompt)
    extra = _optional(row, columns.input)
    return f"{prompt}\n\n{extra}" if extra else prompt


def _fill(row: Mapping[str, Any], column: str | None, pattern: str | None) -> str:
    if pattern is None:
        return _string(row, column or "")
    try:
        text = pattern.format_map(row)
    except KeyError as error:
        raise RowError("malformed", f'column "{error.args[0]}" is missing') from None
    except (IndexError, AttributeError, TypeError, ValueError) as error:
        raise RowError("malformed", f"the template {pattern!r} does not fit the row: {error}") from None
    if not text.strip():
        raise RowError("empty", "the template gives an empty text")
    return text


def _string(row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        raise RowError("malformed", f'column "{column}" is missing')
    return _nonempty(row[column], f'column "{column}"')


def _nonempty(value: Any, what: str) -> str:
    if value is None:
        raise RowError("empty", f"{what} is null")
    if not isinstance(value, str):
        raise RowError("malformed", f"{what} must be a string, not {type(value).__name__}")
    if not value.strip():
        raise RowError("empty", f"{what} is empty")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise RowError("malformed", f"{what} holds half a surrogate pair, which is no text")
    return value


def _optional(row: Mapping[str, Any], column: str | None) -> str | None:
    if column is None or row.get(column) is None or row[column] == "":
        return None
    return _string(row, column)


def _messages(row: Mapping[str, Any], column: str) -> list[Message]:
    if column not in row:
        raise RowError("malformed", f'column "{column}" is missing')
    value = row[column]
    if not isinstance(value, list):
        raise RowError("malformed", f'column "{column}" must be a list of messages, not {type(value).__name__}')
    if not value:
        raise RowError("empty", f'column "{column}" is an empty list')
    messages = [_message(item, number) for number, item in enumerate(value, start=1)]
    if all(message["role"] != "assistant" for message in messages):
        raise RowError("malformed", "no message is by the assistant, so there is nothing to learn")
    return messages


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, dict):
        raise RowError("malformed", f"message {number} must be an object, not {type(item).__name__}")
    openai = "role" in item
    role_key, content_key = ("role", "content") if openai else ("from", "value")
    role = item.get(role_key)
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError("malformed", f"message {number} has the unknown role {repr(role)[:40]}")
    content = item.get(content_key)
    if isinstance(content, list):
        content = _join_parts(content, number)
    return {"role": _ROLES[role], "content": _nonempty(content, f"the content of message {number}")}


def _join_parts(parts: list[Any], number: int) -> str:
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise RowError("malformed", f"message {number} has content that is not text")
    return "".join(part["text"] for part in parts)
