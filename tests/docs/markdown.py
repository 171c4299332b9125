"""What the documentation shows: its pages, and the fenced blocks and inline commands on them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "studies/README.md", "eval_tasks/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    )
)
SHELL = ("bash", "sh", "shell", "console")
MARK = re.compile(r"<!-- not run here: (?P<reason>.+?) -->")
FENCE = re.compile(
    rf"(?:^[ ]*{MARK.pattern}\n)?^(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"(?<!`)`((?:entrodrop|tune|python|make) [^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``not_run`` is the reason given in an HTML comment on the line above, if any."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start("language")) + 1, match["language"], match["text"], match["reason"])
        for match in FENCE.finditer(text)
    ]


def inline_commands(page: str) -> list[str]:
    """Commands within a sentence or table, for example `entrodrop report RUN`."""
    prose = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [" ".join(command.split()) for command in INLINE.findall(prose)]
