"""Open regular files and write whole ones, safely. This knows nothing of their contents."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from io import BufferedReader
from pathlib import Path

from errata.errors import StorageError, UsageError

_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""Flags of every open: follow no link, translate no line ends."""


def folder_named(path: str | Path) -> Path:
    """Return the path of a folder to write into.

    Raises:
        UsageError: the path is empty, or that of a file.
    """
    if not str(path).strip():
        raise UsageError("the folder's name is empty; name one ('.' is the current one).")
    folder = Path(path)
    if not may_be_folder(folder):
        raise UsageError(f"{folder} is a file; name a folder.")
    return folder


def mode_of(path: Path, absent: int) -> int:
    """Return what a path is (as `os.lstat` has it), `absent` if nothing is there.

    One look: what two looks see, another process may have made or removed between them.
    """
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return absent


def may_be_folder(path: Path) -> bool:
    """Whether a path is a folder, links followed, or nothing yet."""
    mode = mode_of(path, stat.S_IFDIR)
    if stat.S_ISLNK(mode):
        mode = mode_of(Path(os.path.realpath(path)), mode)
    return stat.S_ISDIR(mode)


def open_regular(path: Path, most: int) -> BufferedReader:
    """Open a regular file of at most `most` bytes for reading, without ever blocking.

    Raises:
        OSError: there is no such file, it may not be read, it is larger, or it is something else (a
            link, a pipe, a device, a folder); the error's `filename` is its path.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _SAFELY)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link, not a file", str(path)) from error
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket
            raise OSError(errno.EINVAL, "not a regular file", str(path)) from error
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > most:
            message = f"{status.st_size} bytes, more than the {most} that can be right"
            raise OSError(errno.EFBIG, message, str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def digest_of(file: BufferedReader) -> str:
    """Return the SHA-256 of an open file, from its start, in hexadecimal."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet, and flush it to the disk.

    Raises:
        OSError: it exists, or the disk refused.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Write or replace a file atomically, whatever other processes write, and flush it to the disk.

    Raises:
        OSError: the disk refused; what was there before is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{new_token()}.new")
    try:
        write_new(temporary, content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def new_token() -> str:
    """Return eight random hexadecimal digits, for file names that no other writer uses."""
    return secrets.token_hex(4)


def sync_folder(path: Path) -> None:
    """Flush the names of a folder's files to the disk, where the file system can.

    Raises:
        OSError: the disk refused.
    """
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # these mean that the file system cannot
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def storage_error(
    folder: Path, error: OSError, kept: str = "What was saved there before is untouched."
) -> StorageError:
    """Return the error for a disk that refused to write; `kept` says what is still there."""
    return StorageError(f"{folder}: cannot be written ({error.strerror or error}). {kept}")
