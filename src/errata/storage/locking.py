"""`locked`: one writer at a time in a folder. Readers need no lock."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from errata.errors import FolderBusyError
from errata.storage.files import may_be_folder, mode_of, open_regular, storage_error

LOCK = ".edit_lock"
WAIT = 60.0
"""Seconds that a writer waits for another by default."""


@contextlib.contextmanager
def locked(
    folder: Path, wait: float = WAIT, tell: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Lock a folder for writing, for the length of a `with` block; make it if it does not exist.

    The lock is reentrant, and is released when the process that holds it dies.

    Args:
        folder: the folder.
        wait: seconds to wait for another writer; 0 does not wait.
        tell: called with one line before waiting.

    Raises:
        FolderBusyError: another process still writes into it after that time.
        StorageError: it cannot be written.
    """
    is_new = not folder.exists()
    try:
        path = folder.resolve() / LOCK
        if not stat.S_ISREG(mode_of(path, stat.S_IFREG)):
            raise OSError(errno.EEXIST, f"{LOCK} is in the way, and no file")
        lock = FileLock(path, is_singleton=True)
        _acquire(lock, path, folder, wait, tell)
    except OSError as error:
        raise storage_error(folder, error) from error
    first = lock.lock_counter == 1
    if first:
        with contextlib.suppress(OSError):  # the holder is only for messages
            path.write_text(f"{os.getpid()} {socket.gethostname()}", encoding="utf-8")
    try:
        yield
    finally:
        if first:
            # while still locked: a process that has opened the file sees it gone, and opens it anew
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # succeeds if nothing was written
        lock.release()


def _acquire(
    lock: BaseFileLock, path: Path, folder: Path, wait: float, tell: Callable[[str], None] | None
) -> None:
    if _try_to_acquire(lock, folder, 0):
        return
    if wait > 0 and tell is not None:
        tell(
            f"{folder} is being written by {_holder(path)}; waiting up to {wait:g} s for it to end."
        )
    if not _try_to_acquire(lock, folder, wait):
        after = f" still, after {wait:g} s" if wait > 0 else ""
        raise FolderBusyError(
            f"{folder} is being written by {_holder(path)}{after}; "
            "let it end, or write to another folder."
        )


def _try_to_acquire(lock: BaseFileLock, folder: Path, wait: float) -> bool:
    until = time.monotonic() + max(0.0, wait)
    for attempt in itertools.count():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=max(0.0, until - time.monotonic()))
            return True
        except Timeout:
            return False
        except (FileNotFoundError, FileExistsError):
            # another process made the folder, wrote nothing and removed it: try again
            if not may_be_folder(folder) or (attempt > 9 and time.monotonic() > until):
                raise
    return False


def _holder(path: Path) -> str:
    """The process that holds a lock, for messages."""
    try:
        with open_regular(path, 1000) as file:
            pid, _, host = file.read().decode("utf-8").partition(" ")
    except (OSError, ValueError):
        pid = host = ""
    if not pid.isdecimal():
        return "another process"
    return f"process {pid}" + (f" on {host}" if host != socket.gethostname() else "")
