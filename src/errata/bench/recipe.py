"""Reads a YAML file as plain values of given types. It knows no plan.

Every scalar is read as text and then as its field's type, so no tag in the file makes an object.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from errata.bench.published import read_text
from errata.config import read_value
from errata.errors import ConfigError, UsageError, quoted, suggest


def read_fields(path: Path, hints: Mapping[str, Any], several: tuple[str, ...]) -> dict[str, Any]:
    """Read the fields of a recipe.

    Args:
        path: the file.
        hints: field -> its type.
        several: fields that may also be a list of what their type says.

    Raises:
        UsageError: the file cannot be read or is no mapping, or a field is unknown or not of its
            type; both are named.
    """
    fields = _read(path)
    if not isinstance(fields, dict) or "task" not in fields:
        raise UsageError(f"{path}: expected a mapping with at least a 'task'.")
    for name in fields:
        if name not in hints:
            raise UsageError(f"{path}: unknown {quoted(name)}.{suggest(str(name), hints)}")
    try:
        return {
            name: _field(name, value, hints[name], name in several)
            for name, value in fields.items()
        }
    except ConfigError as error:
        raise UsageError(f"{path}: {error}") from error


def _read(path: Path) -> Any:
    try:
        return yaml.load(read_text(path), yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: not YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise UsageError(f"{path}: lists or mappings lie too deep in each other.") from None


def _field(name: str, value: Any, hint: Any, several: bool) -> Any:
    if name == "settings" and isinstance(value, dict):  # {method: {setting: value}}
        return tuple(
            f"{method}.{setting}={_scalar(f'{name}.{method}.{setting}', given)}"
            for method, more in value.items()
            for setting, given in _mapping(f"{name}.{method}", more).items()
        )
    if typing.get_origin(hint) is tuple:
        return tuple(
            _one(name, each, typing.get_args(hint)[0])
            for each in (value if isinstance(value, list) else [value])
        )
    if several and isinstance(value, list):
        return [_one(name, each, hint) for each in value]
    return _one(name, value, hint)


def _one(name: str, value: Any, hint: Any) -> Any:
    text = _scalar(name, value)
    kinds = typing.get_args(hint) or (hint,)
    if type(None) in kinds and text.lower() in ("", "~", "null", "none"):
        return None
    if not text:
        raise ConfigError(f"{name} is empty; leave it out, or say what it is.")
    return Path(text) if Path in kinds else read_value(name, text, hint)


def _scalar(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(
            f"{name} is a {'list' if isinstance(value, list) else 'mapping'}; "
            "expected a text or a number."
        )
    return value


def _mapping(name: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is no mapping; expected SETTING: VALUE.")
    return value
