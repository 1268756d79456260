"""Tells whoever listens what long work is being done, and how far it is.

Work far below the command line (text that a model generates itself, calibration) reports here; the
command line, or a program that uses errata, listens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

OnProgress = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, out of how much)."""

_LISTENER: ContextVar[OnProgress | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def reported_to(listener: OnProgress) -> Iterator[None]:
    """Have all work in a `with` block report to a function."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def report(what: str, done: int, total: int) -> None:
    """Report how far work is; without a listener nothing happens."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(what, done, total)
