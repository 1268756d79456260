"""Reads a task's TOML file and checks its fields and their types. It reads no record."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.bench.published import read_text
from errata.cases import Probe
from errata.errors import EditError, UsageError, quoted, suggest

PLACES = ("locality", "portability", "ood")
"""The fields of a field map that hold probes."""
_TEXT, _TEXTS, _TABLE, _PATH, _PATHS = (
    "text",
    "list of texts",
    "table",
    "path in a record",
    "list of paths in a record",
)
_TASK = {
    "title": _TEXT, "version": "number", "paper": _TEXT, "metrics": _TEXTS, "new_tokens": "number",
    "file": _TEXT, "train": _TEXT, "train_as": _TEXT, "hub": _TABLE, "irrelevant": _TABLE,
    "operation": _TEXT, "instead": _TEXT, "fields": _TABLE,
}  # fmt: skip
_HUB, _IRRELEVANT = {"name": _TEXT, "file": _TEXT}, {"file": _TEXT, "text": _PATH}
_FIELDS = {
    "each": _PATH, "prompt": _PATH, "target": _PATH, "subject": _PATH, "truth": _PATH,
    "rephrases": _PATHS, **dict.fromkeys(PLACES, "list of tables"),
}  # fmt: skip
_PROBE = dict.fromkeys(
    ("kind", "prompt", "answer", "also", "each", "of", "text", "subject", "steps", "results"), _PATH
) | {"leave_out": _TABLE}


def read_task(path: Path) -> dict[str, Any]:
    """Read a task's file, and check it.

    Raises:
        UsageError: it cannot be read, or a field (which is named) is unknown, missing or of
            another type.
    """
    text = read_text(path)
    try:
        task = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise UsageError(f"{path}: lists or tables lie too deep in each other.") from None
    except ValueError as error:  # a number of too many digits
        raise UsageError(f"{path}: cannot be read ({error}).") from error
    try:
        _check("", task, _TASK, ("title", "version", "paper", "metrics", "new_tokens"))
        for name, known in (("hub", _HUB), ("irrelevant", _IRRELEVANT)):
            if name in task:
                _check(f"{name}.", task[name], known, known)
        if "fields" in task:
            fields = task["fields"]
            needed = ["prompt"] if "instead" in task else ["prompt", "target"]
            _check("fields.", fields, _FIELDS, needed)
            for place in PLACES:
                for number, probe in enumerate(fields.get(place, ()), start=1):
                    where = f"fields.{place} {number}: "
                    needed = ["kind", "prompt"]
                    needed += ["answer"] * ("text" not in probe and place != "locality")
                    needed += ["results"] * ("steps" in probe)
                    _check(where, probe, _PROBE, needed)
                    _check_leave_out(where, probe.get("leave_out"))
                    Probe.from_json({"prompt": "?", "kind": probe["kind"]}, place)
    except (UsageError, EditError) as error:
        raise UsageError(f"{path}: {error}") from error
    return task


def _check(where: str, fields: Mapping[str, Any], known: Mapping[str, str], needed: Any) -> None:
    for name, value in fields.items():
        if name not in known:
            raise UsageError(f"unknown {where}{quoted(name)}.{suggest(name, known)}")
        if not _is(known[name], value):
            raise UsageError(f"{where}{name} is {quoted(value)}; expected a {known[name]}.")
    for name in needed:
        if name not in fields:
            raise UsageError(f"{where}{name} is missing; expected a {known[name]}.")


def _check_leave_out(where: str, table: Mapping[str, Any] | None) -> None:
    if table is None:
        return
    patterns = dict.fromkeys(table, _TEXT)
    _check(f"{where}leave_out.", table, patterns | {"by": _PATH}, ["by"])
    for name, pattern in table.items():
        try:
            re.compile(pattern if name != "by" else "")
        except re.error as error:
            raise UsageError(
                f"{where}leave_out.{name}: {quoted(pattern)} is no regular expression ({error})."
            ) from error


def _is(kind: str, value: Any) -> bool:
    if kind == "number":
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10**6
    if kind.startswith("list of "):
        of = _TABLE if kind.endswith("tables") else _TEXT if kind == _TEXTS else _PATH
        return isinstance(value, list) and all(_is(of, each) for each in value)
    if kind == _TABLE:
        return isinstance(value, dict)
    return isinstance(value, str) and (kind == _TEXT or bool(value.strip()))
