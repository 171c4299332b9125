"""Typed configuration: YAML file + dotted ``key=value`` overrides -> frozen pydantic models.

Each layer defines its own section next to the code that reads it (``data.config``, ``models.config``,
``training.config``) by subclassing :class:`Section`; this module only knows how to load and how to refuse.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from entrodrop_tune.errors import UserError, did_you_mean


class Section(BaseModel):
    """Base of every config section: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


Schema = TypeVar("Schema", bound=Section)


def load_mapping(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and apply ``a.b=value`` overrides (``~a.b`` removes a key, as in torchtune).

    Raises:
        UserError: the file is missing, is not a YAML mapping, or an override is malformed.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) if near else " Run `entrodrop ls` for the configs that ship."
        raise UserError(f"config file {path} does not exist.{hint}")
    try:
        config: Any = OmegaConf.load(path)
        if not OmegaConf.is_dict(config):
            raise UserError(f"config file {path} must be a mapping of keys to values.")
        for override in overrides:
            if override.startswith("~"):
                _remove(config, override[1:])
                continue
            config = overridden(config, override)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f'{path} leaves "{missing[0]}" open: add {missing[0]}=VALUE to the command.')
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError, ValueError, OSError, RecursionError) as error:
        raise UserError(f"config file {path}: {' '.join(str(error).split())}") from None


def overridden(config: Any, override: str) -> Any:
    """``config`` (OmegaConf's) with one ``key=value`` merged into it.

    Raises:
        UserError: the override is malformed.
    """
    key, equals, _ = override.partition("=")
    if not equals or not key or key.startswith("-"):
        raise UserError(f'cannot read override "{override}": write key=value, for example epochs=3.')
    try:
        return OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
    except Exception as error:  # a key such as "[" makes OmegaConf raise anything
        raise UserError(f'cannot read override "{override}": {" ".join(str(error).split())}') from None


def _remove(config: Any, dotted: str) -> None:
    parent, _, leaf = dotted.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not OmegaConf.is_dict(node) or leaf not in node:
        raise UserError(f'cannot remove "{dotted}": there is no such key in the config.')
    del node[leaf]


def validate(schema: type[Schema], mapping: Mapping[str, Any], source: str = "config") -> Schema:
    """Check ``mapping`` against ``schema``; a mistake becomes one line naming key, value and nearest valid key.

    Raises:
        UserError: listing every mistake found, one a line.
    """
    try:
        return schema.model_validate(mapping)
    except ValidationError as error:
        lines = [_explain(schema, mapping, dict(item)) for item in error.errors()]
        raise UserError(f"{source}: " + "\n       ".join(dict.fromkeys(lines))) from None


def _explain(schema: type[Section], mapping: Mapping[str, Any], item: dict[str, Any]) -> str:
    location = _written(mapping, item["loc"], keep_last=item["type"] == "missing")
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        siblings = _field_names(schema, location[:-1])
        return f'unknown key "{key}".{did_you_mean(str(location[-1]), siblings)}'
    if item["type"] == "missing":
        return f'"{key}" is required.'
    message = item["msg"].removeprefix("Value error, ").rstrip(".")
    return f'"{key}" = {item["input"]!r}: {message}.' if key else f"{message}."


def _written(mapping: Any, location: Sequence[Any], keep_last: bool) -> list[Any]:
    """``location`` without what its user never wrote: pydantic puts the tried member of a union into the path."""
    written, node = [], mapping
    for part in location:
        in_mapping = isinstance(node, Mapping) and part in node
        in_list = isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)
        if in_mapping or in_list:
            written.append(part)
            node = node[part]
    return [*written, location[-1]] if keep_last else written


def _field_names(schema: type[BaseModel], location: Iterable[Any]) -> set[str]:
    schemas: set[type[BaseModel]] = {schema}
    for part in location:
        if isinstance(part, int):
            continue
        schemas = {
            nested for s in schemas if part in s.model_fields for nested in _models_in(s.model_fields[part].annotation)
        }
    return {name for s in schemas for name in s.model_fields}


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for argument in get_args(annotation) for model in _models_in(argument)}
