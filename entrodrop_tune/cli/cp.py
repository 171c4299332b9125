"""``entrodrop cp``: a copy of a shipped config or recipe to edit."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from entrodrop_tune.cli.catalog import configs, find, recipes
from entrodrop_tune.errors import UserError
from entrodrop_tune.files import require_folder


def cp(
    name: Annotated[str, typer.Argument(help="Short name from `entrodrop ls`.")],
    destination: Annotated[Path, typer.Argument(help="File or folder to copy to.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a shipped config or recipe, to edit it.

    **Examples**

        entrodrop cp smollm2/135m_lora my.yaml

        entrodrop cp full_finetune .
    """
    source = find(name, {**configs(), **recipes()}, "config or recipe")
    target = destination / source.name if destination.is_dir() else destination
    if target.exists() and not force:
        raise UserError(f"{target} exists: add --force to overwrite it.")
    require_folder(target.parent, "destination")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(target)
