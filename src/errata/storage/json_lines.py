"""Read JSON-lines files, with errors that name file and line. This knows no edits and no cases."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from errata.errors import EditError, quoted

Parsed = TypeVar("Parsed")


def parse_json_lines(
    path: str | Path, parse: Callable[[Mapping[str, Any]], Parsed]
) -> list[tuple[int, Parsed]]:
    """Read (line number, parsed object) from every non-empty line of a UTF-8 JSON-lines file.

    Args:
        path: the file.
        parse: turns the JSON object of a line into what is returned.

    Raises:
        EditError: the file cannot be read or has no objects; or a line (which is named) is not
            UTF-8, not JSON or not an object, or `parse` raises an `EditError`.
    """
    path = Path(path)
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EditError(f"{path}: cannot be read ({reason}).") from error
    parsed = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                parsed.append((number, parse(_json_object(line))))
            except EditError as error:
                raise EditError(f"{path}:{number}: {error}") from error
    if not parsed:
        raise EditError(f"{path}: nothing in it; expected one JSON object a line.")
    return parsed


def json_type(value: object) -> str:
    """Return the name of a JSON value's type, for errors."""
    return "null" if value is None else type(value).__name__


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise EditError(f"not UTF-8 (byte {error.start + 1} of the line).") from error
    except json.JSONDecodeError as error:
        raise EditError(f"not JSON: {error.msg} at column {error.colno}.") from error
    except RecursionError:
        raise EditError("lists or objects lie too deep in each other.") from None
    except EditError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise EditError(f"a number is too long ({str(error).partition(';')[0]}).") from error
    if not isinstance(data, dict):
        raise EditError(f"expected one JSON object a line, got {json_type(data)}.")
    return data


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise EditError(f"the field {quoted(twice)} stands there twice; say it once.")
    return data
