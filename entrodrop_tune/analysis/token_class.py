"""What kind of thing a token is part of: a number, an operator, a keyword, a function word, ..."""

import keyword
import re
from collections.abc import Sequence

CLASSES = (
    "number", "operator", "punctuation", "keyword", "identifier", "function word", "word", "space", "special",
)  # fmt: skip

LEXEME = re.compile(
    r"""(?P<number>\d+(?:[.,_]\d+)*)
    |(?P<name>[^\W\d]\w*(?:['’]\w+)?)
    |(?P<operator>\\[A-Za-z]+|[-+*/=<>%^&|~@!×÷±√∑∏≤≥≠≈→·]+)
    |(?P<punctuation>[^\w\s])""",
    re.VERBOSE,
)
# Lines that open the way statements of common programming languages do.
CODE_LINE = re.compile(
    r"^\s*(?:def |class |import |from \w[\w.]* import |return\b|for \w.* in |while .*:|if .*:|elif |else:|print\(|"
    r"#include|function |const |let |var |public |private |assert |[\w.\[\]]+ [-+*/]?= )",
    re.MULTILINE,
)
IDENTIFIER = re.compile(r".*(?:_|\d|[a-z][A-Z])")
# The closed word classes of English: articles, pronouns, prepositions, conjunctions, auxiliaries, particles.
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those each every either neither some any no all both half such what which whose i
    you he she it we they me him her us them my your his its our their mine yours hers ours theirs myself
    yourself himself herself itself ourselves themselves who whom one ones somebody anybody nobody everyone of
    in on at by for with about against between into through during before after above below to from up down out
    off over under within without among per via toward towards upon across along around behind beside beyond
    near since until and but or nor so yet if because although though while whereas unless than as whether when
    where why how once am is are was were be been being have has had having do does did doing will would shall
    should can could may might must not n't then there here too very just also only even again still already
    ever never more most less least much many few
    """.split()  # noqa: SIM905
)


def looks_like_code(text: str) -> bool:
    """Whether most of ``text`` seems to be a program: a fenced block, or two lines that open like statements."""
    return "```" in text or len(CODE_LINE.findall(text)) >= 2


def classify(pieces: Sequence[str], special: Sequence[bool] | None = None) -> list[str]:
    """The class of each token, by the lexeme that holds its first visible character.

    Args:
        pieces: the tokens' texts, which joined give the whole text.
        special: true where a token is one of the tokenizer's special tokens.

    Returns:
        A member of :data:`CLASSES` for each token.
    """
    text = "".join(pieces)
    kinds = _character_classes(text, looks_like_code(text))
    classes, start = [], 0
    for index, piece in enumerate(pieces):
        first = next((start + i for i, character in enumerate(piece) if not character.isspace()), None)
        if special is not None and special[index]:
            classes.append("special")
        elif first is None:
            classes.append("space")
        else:
            classes.append(kinds[first])
        start += len(piece)
    return classes


def _character_classes(text: str, code: bool) -> list[str]:
    kinds = ["punctuation"] * len(text)
    for match in LEXEME.finditer(text):
        kind = match.lastgroup or "punctuation"
        if kind == "name":
            kind = _name_class(match.group(), code)
        kinds[match.start() : match.end()] = [kind] * (match.end() - match.start())
    return kinds


def _name_class(name: str, code: bool) -> str:
    if code:
        return "keyword" if keyword.iskeyword(name) or keyword.issoftkeyword(name) else "identifier"
    if IDENTIFIER.match(name):
        return "identifier"
    return "function word" if name.lower().replace("’", "'") in FUNCTION_WORDS else "word"
