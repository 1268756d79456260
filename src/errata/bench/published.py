"""Reads published files, a JSON list or JSON lines, and values at paths in a record.

It knows no task.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from errata.errors import EditError, UsageError

Record = Mapping[str, Any]


def read_text(path: Path, error_class: type[UsageError] = UsageError) -> str:
    """Read a text, with or without a byte order mark.

    Raises:
        UsageError: (or another class) it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise error_class(f"{path}: not UTF-8 (byte {error.start + 1}).") from error
    except (OSError, ValueError) as error:
        raise error_class(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})."
        ) from error


def read_records(path: Path) -> list[Record]:
    """Read the records of a file, of which there is at least one.

    Raises:
        EditError: the file cannot be read, is cut off or is no list of objects; the record is
            named, counted from 1.
    """
    found: list[Record] = []
    for number, value in enumerate(_values(path, read_text(path, EditError)), start=1):
        if not isinstance(value, dict):
            raise EditError(
                f"{path}, record {number}: expected an object, got {type(value).__name__}."
            )
        found.append(value)
    if not found:
        raise EditError(f"{path}: no record in it.")
    return found


def _values(path: Path, text: str) -> Iterator[Any]:
    """Yield the values of a list or a stream of JSON, one by one, so that a cut is located."""
    decoder, place, number = json.JSONDecoder(), 0, 1

    def skip(signs: str) -> str:
        nonlocal place
        while place < len(text) and text[place] in signs:
            place += 1
        return text[place : place + 1]

    listed = skip(" \t\r\n") == "["
    place += listed
    while (sign := skip(" \t\r\n")) and not (listed and sign == "]"):
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            ends = not text[error.pos :].strip() or error.msg.startswith("Unterminated")
            what = "the file is cut off" if ends else f"not JSON: {error.msg}"
            raise EditError(f"{path}, record {number}: {what} (line {error.lineno}).") from error
        except RecursionError:
            raise EditError(
                f"{path}, record {number}: lists or objects lie too deep in each other."
            ) from None
        except ValueError as error:  # a number of thousands of digits
            reason = str(error).partition(";")[0]
            raise EditError(f"{path}, record {number}: a number is too long ({reason}).") from error
        yield value
        number += 1
        if listed:
            if skip(" \t\r\n") not in (",", "]"):
                raise EditError(f"{path}: the list is cut off behind record {number - 1}.")
            place += text[place] == ","
    if listed and skip(" \t\r\n") != "]":
        raise EditError(f"{path}: the list is cut off behind record {number - 1}.")


def values_at(record: Any, path: str) -> list[Any]:
    """Return the values at a dotted path, through lists; [] where a part is missing."""
    found = [record]
    for part in path.split("."):
        found = [
            each for value in found for each in (value if isinstance(value, list) else [value])
        ]
        found = [
            value[part]
            for value in found
            if isinstance(value, Mapping) and value.get(part) is not None
        ]
    return found


def texts_at(record: Any, path: str) -> list[str]:
    """Return the texts at a dotted path, through lists of any depth; numbers are texts too.

    Raises:
        EditError: something else lies there, or nothing does and the path does not end in "?".
    """
    optional = path.endswith("?")
    found = list(_texts(values_at(record, path.removesuffix("?")), path))
    if not found and not optional:
        raise EditError(f"the field {path!r} is missing or empty.")
    return found


def _texts(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _texts(each, path)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        if str(value).strip():
            yield str(value)
    elif value is not None:
        raise EditError(
            f"the field {path.removesuffix('?')!r} holds {type(value).__name__}, "
            "and should hold text."
        )
