"""One writer at a time in a folder. Readers need no lock."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from errata.errors import FolderBusyError
from errata.storage.files import open_regular, refused

LOCK = ".edit_lock"
WAIT = 60.0
"""Seconds that a writer waits for another to end, unless told otherwise."""


@contextlib.contextmanager
def locked(
    folder: Path, wait: float = WAIT, tell: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Be the only writer of a folder, which is made if there is none. Within it, it may be taken
    again.

    The lock dies with the process that holds it.

    Args:
        wait: seconds to wait for another writer; 0 does not wait.
        tell: called with one line when there is something to wait for.

    Raises:
        FolderBusyError: another process writes into it, and still does after that time.
        StorageError: it cannot be written.
    """
    made = not folder.exists()
    try:
        path = folder.resolve() / LOCK
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise OSError(errno.EEXIST, f"{LOCK} is in the way, and no file")
        lock = FileLock(path, is_singleton=True)
        _acquire(lock, path, folder, wait, tell)
    except OSError as error:
        raise refused(folder, error) from error
    first = lock.lock_counter == 1
    if first:
        with contextlib.suppress(OSError):  # who holds it only tells others whom they wait for
            path.write_text(f"{os.getpid()} {socket.gethostname()}", encoding="utf-8")
    try:
        yield
    finally:
        if first:
            with contextlib.suppress(OSError):
                path.unlink(
                    missing_ok=True
                )  # still held: who has opened it meanwhile sees that it is gone, and opens anew
            if made:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # nothing came of it
        lock.release()


def _acquire(
    lock: BaseFileLock, path: Path, folder: Path, wait: float, tell: Callable[[str], None] | None
) -> None:
    if _acquired(lock, folder, 0):
        return
    if wait > 0 and tell is not None:
        tell(
            f"{folder} is being written by {_holder(path)}; waiting up to {wait:g} s for it to end."
        )
    if not _acquired(lock, folder, wait):
        after = f" still, after {wait:g} s" if wait > 0 else ""
        raise FolderBusyError(
            f"{folder} is being written by {_holder(path)}{after}; let it end, or write to another folder."
        )


def _acquired(lock: BaseFileLock, folder: Path, wait: float) -> bool:
    until = time.monotonic() + max(0.0, wait)
    for attempt in itertools.count():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=max(0.0, until - time.monotonic()))
            return True
        except Timeout:
            return False
        except (
            FileNotFoundError,
            FileExistsError,
        ):  # who made the folder had nothing to put into it, and took it away
            if (folder.exists() and not folder.is_dir()) or (
                attempt > 9 and time.monotonic() > until
            ):
                raise
    return False


def _holder(path: Path) -> str:
    try:
        with open_regular(path, 1000) as file:
            pid, _, host = file.read().decode("utf-8").partition(" ")
    except (OSError, ValueError):
        pid = host = ""
    if not pid.isdecimal():
        return "another process"
    return f"process {pid}" + (f" on {host}" if host != socket.gethostname() else "")
