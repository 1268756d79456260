"""What callers hand over, made uniform: one thing where several are expected is a list of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from errata.errors import UsageError

Item = TypeVar("Item")


def listed(given: Item | Iterable[Item], kind: type[Item], name: str) -> list[Item]:
    """A list of what was given; one `kind` alone, a text among them, is a list of one.

    Args:
        given: one, or several.
        kind: what each must be.
        name: what the parameter is called.

    Raises:
        UsageError: it is neither one nor several of that kind.
    """
    if isinstance(given, kind):
        return [given]
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise UsageError(
            f"{name}: expected {_named(kind)} or a list of them, got {type(given).__name__}."
        )
    several = list(given)
    for place, each in enumerate(several):
        if not isinstance(each, kind):
            raise UsageError(
                f"{name}: expected {_named(kind)} or a list of them; number {place + 1} is {type(each).__name__}."
            )
    return several


def expected(given: object, kind: type, name: str, otherwise: str = "") -> None:
    """Make sure that something is of its kind.

    Args:
        given: it.
        kind: what it must be.
        name: what the parameter is called.
        otherwise: what to do, for the error.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(given, kind):
        raise UsageError(
            f"{name}: expected a {kind.__name__}, got {type(given).__name__}{otherwise}."
        )


def _named(kind: type) -> str:
    return "a text (str)" if kind is str else f"one {kind.__name__}"
