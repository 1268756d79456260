"""The ways to edit what a pipeline draws, by name."""

from __future__ import annotations

from errata.errors import UnknownNameError, suggest
from errata.images.memory import Memory
from errata.images.method import ImageMethod
from errata.images.refact import Refact

METHODS: dict[str, type[ImageMethod]] = {each.name: each for each in (Refact, Memory)}


def method_of(name: str) -> type[ImageMethod]:
    """Return the class of a method.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in METHODS:
        raise UnknownNameError(
            f"there is no method {name!r} for images.{suggest(name, METHODS)} Other methods of "
            "`errata methods` edit language models."
        )
    return METHODS[name]
