"""`Follower`: keeps a model at the last version of a ledger that other servers append to, too."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from errata.errors import StorageError
from errata.serve.ledger import Ledger

log = logging.getLogger(__name__)

LOOKS = 0.25
"""Seconds between two looks at a ledger that does not tell when it changes."""
PAUSE = 1.0
"""Seconds until one that cannot be used is tried again."""


class Follower:
    """A thread that waits for other servers' entries.

    Args:
        ledger: which it waits for.
        version: tells the version of the model.
        catch_up: brings the model to the ledger's version.
    """

    def __init__(
        self, ledger: Ledger, version: Callable[[], int], catch_up: Callable[[], None]
    ) -> None:
        self._ledger, self._version, self._catch_up = ledger, version, catch_up
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="errata-ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _follow(self) -> None:
        failing = False
        while not self._closing.is_set():
            try:
                if self._ledger.version != self._version():
                    self._catch_up()
                self._ledger.wait(LOOKS)
                failing = False
            except Exception as error:
                if not isinstance(error, StorageError):
                    log.exception("the ledger cannot be followed")
                elif not failing:
                    log.warning("%s Trying again, each %.0f s.", error, PAUSE)
                failing = True
                self._closing.wait(PAUSE)
