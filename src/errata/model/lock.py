"""`SharedLock`: many threads may read at once, one may change. Of locks for one process the
standard library has none such.

A thread may take it again while it holds it, in any order but one: who reads cannot begin to
change, since two that tried would wait for each other for ever. Readers that come while someone
waits to change wait behind them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from errata.errors import UsageError

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds of waiting after which it is logged who is waited for."""


class SharedLock:
    """A lock with two sides, `shared` and `exclusive`; it is let go by the thread that took it."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._readers: dict[
            int, tuple[str, int]
        ] = {}  # thread -> (what it does, how often it holds)
        self._writer: int | None = None
        self._writes: list[str] = []  # what the writer does, the outermost first
        self._waiting = 0

    @contextmanager
    def shared(self, doing: str) -> Iterator[None]:
        """Hold it together with others, for the length of a `with` block.

        Args:
            doing: what those who wait are told.
        """
        me = threading.get_ident()
        with self._changed:
            if self._writer != me and me not in self._readers:
                self._wait(lambda: self._writer is None and not self._waiting)
            what, times = self._readers.get(me, (doing, 0))
            self._readers[me] = what, times + 1
        try:
            yield
        finally:
            with self._changed:
                what, times = self._readers.pop(me)
                if times > 1:
                    self._readers[me] = what, times - 1
                else:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self, doing: str) -> Iterator[None]:
        """Hold it alone, for the length of a `with` block.

        Args:
            doing: what those who wait are told.

        Raises:
            UsageError: this thread holds it together with others.
        """
        me = threading.get_ident()
        with self._changed:
            if self._writer != me:
                if me in self._readers:
                    raise UsageError(
                        f"{doing} was called from within {self._readers[me][0]} of the same model, which it would change; "
                        "wait for that to end, then call it."
                    )
                self._waiting += 1
                try:
                    self._wait(lambda: self._writer is None and not self._readers)
                    self._writer = me
                finally:
                    self._waiting -= 1
                    self._changed.notify_all()  # also when the wait was broken off: readers behind it may go on
            self._writes.append(doing)
        try:
            yield
        finally:
            with self._changed:
                self._writes.pop()
                if not self._writes:
                    self._writer = None
                    self._changed.notify_all()

    def _wait(self, free: Callable[[], bool]) -> None:
        begun = time.monotonic()
        if self._changed.wait_for(free, PATIENCE):
            return
        log.warning(
            "waiting for %.0f s for a model that is held by %s.",
            time.monotonic() - begun,
            self._holders(),
        )
        self._changed.wait_for(free)

    def _holders(self) -> str:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        held = {ident: what for ident, (what, _) in self._readers.items()}
        if self._writer is not None:
            held[self._writer] = self._writes[0] if self._writes else ""
        told = [
            f"{names.get(ident, 'a thread that has ended')} ({what})"
            for ident, what in held.items()
        ]
        return ", ".join(told) or "threads that wait to change it"
