"""Files: regular ones are opened, whole ones are written. It knows nothing of what is in them."""

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


def folder_named(path: str | Path) -> Path:
    """The path of a folder that is to be written into.

    Raises:
        UsageError: it is empty, or the path of a file.
    """
    if not str(path).strip():
        raise UsageError("the folder's name is empty; name one ('.' is the current one).")
    folder = Path(path)
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UsageError(f"{folder} is a file; name a folder.")
    return folder


def open_regular(path: Path, most: int) -> BufferedReader:
    """Open a regular file of at most so many bytes; a link, a pipe, a device or a folder is none,
    and is never waited for.

    Raises:
        OSError: there is no such file, it may not be read, or it is something else; the error's
            `filename` is its path.
    """
    flags = (
        os.O_RDONLY
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_BINARY", 0)
    )
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link, not a file", str(path)) from error
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket
            raise OSError(errno.EINVAL, "not a regular file", str(path)) from error
        raise
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if about.st_size > most:
            raise OSError(
                errno.EFBIG,
                f"{about.st_size} bytes, more than the {most} that can be right",
                str(path),
            )
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def digest_of(file: BufferedReader) -> str:
    """SHA-256 of an open file, from its beginning."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, through to the disk.

    Raises:
        OSError: it is there, or the disk refused.
    """
    flags = (
        os.O_WRONLY
        | os.O_CREAT
        | os.O_EXCL
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_BINARY", 0)
    )
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in its place, whole or not at all, through to the disk; whatever others write
    meanwhile.

    Raises:
        OSError: the disk refused; what stood there before still does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{new_token()}.new")
    try:
        write_new(beside, content)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def new_token() -> str:
    """Eight digits (hexadecimal) that no other writer uses."""
    return secrets.token_hex(4)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk, not only the contents, as far as the file system
    knows such a thing.
    """
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
            errno.EBADF,
        ):  # a file system that has no such thing
            raise
    finally:
        os.close(handle)


def refused(
    folder: Path, error: OSError, kept: str = "What was saved there before is untouched."
) -> StorageError:
    """What to say of a disk that refused."""
    return StorageError(f"{folder}: cannot be written ({error.strerror or error}). {kept}")
