"""Checks of what callers pass: one item where a list is expected becomes a list of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from errata.errors import UsageError

Item = TypeVar("Item")


def as_list(given: Item | Iterable[Item], kind: type[Item], name: str) -> list[Item]:
    """Return a list of the items given; a single item, such as one text, becomes a list of one.

    Args:
        given: one item, or several.
        kind: the type of each.
        name: the parameter's name, for the error.

    Raises:
        UsageError: it is neither one item of that type nor several.
    """
    if isinstance(given, kind):
        return [given]
    wanted = "a text (str)" if kind is str else f"one {kind.__name__}"
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise UsageError(
            f"{name}: expected {wanted} or a list of them, got {type(given).__name__}."
        )
    items = list(given)
    for number, item in enumerate(items, start=1):
        if not isinstance(item, kind):
            raise UsageError(
                f"{name}: expected {wanted} or a list of them; "
                f"number {number} is {type(item).__name__}."
            )
    return items


def check_type(given: object, kind: type, name: str, advice: str = "") -> None:
    """Raise `UsageError` unless a value is of a type.

    Args:
        given: the value.
        kind: the type.
        name: the parameter's name, for the error.
        advice: what to do instead, for the error.
    """
    if not isinstance(given, kind):
        raise UsageError(f"{name}: expected a {kind.__name__}, got {type(given).__name__}{advice}.")
