"""The one exception a user is meant to see, and the wording that helps them."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """Something the user can fix: bad config, missing file, malformed data.

    Every entry point (``entrodrop`` and the recipes) prints the message as one ``error: ...`` line and exits
    with code 2, without a traceback. The message names the thing that is wrong, its value, and the fix.
    """


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """``' Did you mean "x"?'`` when an option is close to ``name``, else the list of options."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f' Did you mean "{close[0]}"?'
    return f" Choose from: {', '.join(options)}."


def first_problem(error: "ValidationError") -> str:
    """``tasks.gsm8k.n: Input should be a valid integer``: the first of a validation's complaints, in one line."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return " ".join(f"{place + ': ' if place else ''}{first['msg']}".split())
