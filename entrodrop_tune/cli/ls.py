"""``entrodrop ls``: recipes and configs by short name."""

import json
from typing import Annotated

import typer

from entrodrop_tune.cli.catalog import configs, first_comment, recipes


def ls(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: name, path and description of each.")] = False,
) -> None:
    """List the recipes and configs that ship with the package.

    **Examples**

        entrodrop ls

        entrodrop ls --json
    """
    found = {"recipes": recipes(), "configs": configs()}
    rows = {
        kind: [{"name": name, "path": str(path), "description": first_comment(path)} for name, path in items.items()]
        for kind, items in found.items()
    }
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    for kind, items in rows.items():
        table = Table(title=kind, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for heading in ("name", "description"):
            table.add_column(heading, overflow="fold")
        for row in items:
            table.add_row(row["name"], row["description"])
        Console().print(table)
