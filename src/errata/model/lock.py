"""`SharedLock`: a lock of one process that many threads may share, or one may hold alone.

The standard library has none such. A thread may take it again while it holds it, except that one
that shares it cannot take it alone: two that tried would wait for each other for ever. While a
thread waits to hold it alone, others that want to share it wait behind that thread; when it is
done, they come before the next one that wants it alone. So neither side waits for ever.
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
"""Seconds of waiting after which the log names the holders of the lock."""


class SharedLock:
    """A lock with two sides, `shared` and `exclusive`; the thread that took it releases it."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._readers: dict[int, tuple[str, int]] = {}  # thread -> (its call, times it holds)
        self._writer: int | None = None
        self._writes: list[str] = []  # the writer's nested calls, the outermost first
        self._waiting = 0  # threads that want to write
        self._queued = 0  # threads that want to read
        self._turn = 0  # of those, how many come before the next writer

    @contextmanager
    def shared(self, call: str) -> Iterator[None]:
        """Hold the lock together with other threads within a `with` block.

        Args:
            call: what the block does, for the log and errors of threads that wait.
        """
        me = threading.get_ident()
        with self._changed:
            if self._writer != me and me not in self._readers:
                self._wait_to_read()
            first_call, times = self._readers.get(me, (call, 0))
            self._readers[me] = first_call, times + 1
        try:
            yield
        finally:
            with self._changed:
                first_call, times = self._readers.pop(me)
                if times > 1:
                    self._readers[me] = first_call, times - 1
                else:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self, call: str) -> Iterator[None]:
        """Hold the lock alone within a `with` block.

        Args:
            call: what the block does, for the log and errors of threads that wait.

        Raises:
            UsageError: this thread shares it.
        """
        me = threading.get_ident()
        with self._changed:
            if self._writer != me:
                if me in self._readers:
                    raise UsageError(
                        f"{call} was called from within {self._readers[me][0]} of the same model, "
                        "which it would change; wait for that to end, then call it."
                    )
                self._waiting += 1
                try:
                    self._wait(lambda: not (self._writer or self._readers or self._turn))
                    self._writer = me
                finally:
                    self._waiting -= 1
                    self._changed.notify_all()  # readers may go on if the wait was interrupted
            self._writes.append(call)
        try:
            yield
        finally:
            with self._changed:
                self._writes.pop()
                if not self._writes:
                    self._writer = None
                    self._turn = self._queued
                    self._changed.notify_all()

    def _wait_to_read(self) -> None:
        self._queued += 1
        try:
            self._wait(lambda: self._writer is None and bool(self._turn or not self._waiting))
            self._turn = max(0, self._turn - 1)
        finally:
            self._queued -= 1
            self._turn = min(self._turn, self._queued)  # the wait may have been interrupted
            self._changed.notify_all()

    def _wait(self, is_free: Callable[[], bool]) -> None:
        start = time.monotonic()
        if self._changed.wait_for(is_free, PATIENCE):
            return
        log.warning(
            "waiting for %.0f s for a model that is held by %s.",
            time.monotonic() - start,
            self._holders(),
        )
        self._changed.wait_for(is_free)

    def _holders(self) -> str:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        calls = {thread: call for thread, (call, _) in self._readers.items()}
        if self._writer is not None:
            calls[self._writer] = self._writes[0] if self._writes else ""
        holders = [
            f"{names.get(thread, 'a thread that has ended')} ({call})"
            for thread, call in calls.items()
        ]
        return ", ".join(holders) or "threads that wait to change it"
