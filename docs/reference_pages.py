"""Markdown of the two reference pages that come from the code: config keys and commands."""

import json
from typing import Any

CONFIG_INTRO = """# Config keys

Generated from the typed schema (`entrodrop_tune/training/config.py`). A config is a YAML file; every key can be set on
the command line as `section.key=value`, and `~section.key` removes one. Unknown keys are refused with the nearest valid
one. Keys without a default are required. `entrodrop check --config FILE` checks a config without training.

How the keys work together: [training](../training.md), [data](../data.md), [models](../models.md),
[curriculum and selection](../method.md#curriculum).
"""
COMMANDS_INTRO = """# Commands

Generated from the commands' own `--help`. Every command that prints a table has `--json`; bad input ends with exit code
2 and one line that says what to change. Training itself is `tune run`: [training](../training.md).

"""


def config_page() -> str:
    """A table a section: key, type with its range, default, meaning."""
    from entrodrop_tune.training.config import RunConfig

    schema = RunConfig.model_json_schema()
    sections = schema["$defs"]
    pages = [CONFIG_INTRO, "## Top level\n", *_table(schema, sections)]
    for name, prop in _nested(schema, sections):
        pages += _section(name, prop, sections)
    return "\n".join(pages) + "\n"


def _section(path: str, schema: dict[str, Any], sections: dict[str, Any]) -> list[str]:
    """Heading, description and table of one section, then those of the sections within it."""
    lines = [f"\n## {path}\n", _prose(schema["description"]) + "\n"]
    if schema.get("additionalProperties") is True:
        lines.append("Further keys are the component's own arguments.\n")
    lines += _table(schema, sections)
    for name, inner in _nested(schema, sections):
        # A source repeats data.columns and data.template.
        if path == "data" or not path.startswith("data."):
            lines += _section(f"{path}.{name}", inner, sections)
    return lines


def _nested(schema: dict[str, Any], sections: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, prop in schema["properties"].items():
        reference = _reference(prop)
        if reference is not None and (name, reference) != ("validation", "Source"):  # as data.train
            found.append((f"{name}[]" if prop.get("type") == "array" else name, sections[reference]))
    return found


def _reference(prop: dict[str, Any]) -> str | None:
    for candidate in (prop, prop.get("items", {}), *prop.get("anyOf", [])):
        if "$ref" in candidate:
            return candidate["$ref"].rpartition("/")[2]
    return None


def _table(schema: dict[str, Any], sections: dict[str, Any]) -> list[str]:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, prop in schema["properties"].items():
        required = name in schema.get("required", ())
        default = "required" if required else _default(prop)
        rows.append(f"| `{name}` | {_type(prop, sections)} | {default} | {_prose(prop.get('description', ''))} |")
    return rows


def _default(prop: dict[str, Any]) -> str:
    if _reference(prop) is not None and isinstance(prop.get("default"), dict):
        return "its defaults"
    return f"`{json.dumps(prop.get('default'), ensure_ascii=False)}`"


def _type(prop: dict[str, Any], sections: dict[str, Any]) -> str:
    if "anyOf" in prop:
        return " or ".join(_type(option, sections) for option in prop["anyOf"])
    if "$ref" in prop:
        return "component" if _reference(prop) == "Component" else "section"
    if "enum" in prop:
        return ", ".join(f"`{value}`" for value in prop["enum"])
    if prop.get("type") == "array":
        return f"list of: {_type(prop['items'], sections)}"
    names = {"object": "mapping", "null": "`null`", "string": "text", "boolean": "`true`, `false`"}
    return names.get(prop["type"], prop["type"]) + _range(prop)


def _range(prop: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {prop[key]}" for key, sign in signs.items() if key in prop]
    return f" {', '.join(bounds)}" if bounds else ""


def _prose(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def commands_page() -> str:
    """Every command with its arguments, options and examples, as typer writes them."""
    import typer
    from typer.cli import get_docs_for_click

    from entrodrop_tune.cli.main import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="entrodrop"), name="entrodrop")
    # Its own list of commands cuts their descriptions short; the site's table of contents is one too.
    return COMMANDS_INTRO + text[text.index("## `entrodrop ") :]
