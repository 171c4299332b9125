"""The recipes and configs that ship with the package, by short name."""

from pathlib import Path

import entrodrop_tune
from entrodrop_tune.errors import UserError, did_you_mean

PACKAGE = Path(entrodrop_tune.__file__).parent


def recipes() -> dict[str, Path]:
    """Short name (``lora_finetune``) -> file."""
    return {path.stem: path for path in sorted((PACKAGE / "recipes").glob("*.py")) if path.stem != "__init__"}


def configs() -> dict[str, Path]:
    """Short name (``smollm2/135m_lora``) -> file."""
    folder = PACKAGE / "configs"
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}


def first_comment(path: Path) -> str:
    """The line that says what a recipe or config is: the docstring's or the leading comment's first."""
    line = path.read_text(encoding="utf-8").lstrip().splitlines()[0]
    return line.strip('#" ').rstrip(".")


def find(name: str, shipped: dict[str, Path], kind: str) -> Path:
    """A shipped file by short name, or a file of the user's by path.

    Raises:
        UserError: neither exists.
    """
    if name in shipped:
        return shipped[name]
    if Path(name).is_file():
        return Path(name)
    raise UserError(f'there is no {kind} "{name}", shipped or on disk.{did_you_mean(name, shipped)}')
