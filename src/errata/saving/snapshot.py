"""Read several files of one generation while others may write. It takes no lock, writes nothing.

Where a marker says that new files are complete, those are read, wherever they are by then. A reader
whose folder changes meanwhile begins again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file as map_safetensors
from torch import Tensor

from errata.errors import ArtifactError, FolderBusyError
from errata.saving.names import COMPLETE, CONFIG, PART
from errata.saving.transaction import read_marker
from errata.storage.files import digest_of, open_regular

TRIES, PAUSE = 40, 0.1
"""Most attempts to read a changing folder, and the longest pause between two, in seconds."""
_IN_CACHE = re.compile(r"\.\./\.\./blobs/[0-9a-f]{32,64}")
_MAX_TEXT_BYTES, _MAX_TENSOR_BYTES = 2**30, 2**36

Result = TypeVar("Result")
Stamp = tuple[int, ...]
"""A file's device, inode, size and time: another for another file, or for other contents."""


class FolderChangedError(Exception):
    """The folder was changed while it was read."""


class Snapshot:
    """The files of one generation in a folder, unless the folder changes meanwhile.

    Args:
        known: SHA-256 of files that earlier attempts have read.
    """

    def __init__(self, folder: Path, known: dict[Stamp, str]) -> None:
        self.folder = folder
        self._known = known
        self._first_stamps = self._stamps()
        marker = read_marker(folder)
        self._temporary = marker[0] if marker else {}

    @property
    def changed(self) -> bool:
        """Whether the folder has changed since the snapshot was made."""
        return self._stamps() != self._first_stamps

    def content(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: it cannot be read.
        """
        limit = _MAX_TENSOR_BYTES if name.endswith(PART) else _MAX_TEXT_BYTES
        with self._open(name, limit)[0] as file:
            return file.read()

    def mapped(self, name: str, digest: str) -> dict[str, Tensor]:
        """Return the memory-mapped tensors of a file that has this SHA-256.

        Raises:
            OSError: it cannot be read.
            ArtifactError: it has another SHA-256.
            SafetensorError: it holds no tensors.
            FolderChangedError: it was replaced meanwhile.
        """
        file, path = self._open(name, _MAX_TENSOR_BYTES)
        with file:
            stamp = _stamp(os.fstat(file.fileno()))
            if stamp not in self._known:
                self._known[stamp] = digest_of(file)
            check_digest(self.folder / name, self._known[stamp], digest, stamp[2])
            try:
                tensors: dict[str, Tensor] = map_safetensors(path)
            except FileNotFoundError as error:
                raise FolderChangedError from error
            if _stamp_of(path) != stamp:  # an open file's inode is not given to another file
                raise FolderChangedError
        return tensors

    def copy(self, name: str, digest: str, goal: Path) -> None:
        """Copy a file that has this SHA-256 to a new path.

        Raises:
            OSError: it cannot be read, or the copy cannot be written.
            ArtifactError: it has another SHA-256.
        """
        with self._open(name, _MAX_TENSOR_BYTES)[0] as file:
            size = os.fstat(file.fileno()).st_size
            check_digest(self.folder / name, digest_of(file), digest, size)
            file.seek(0)
            with goal.open("wb") as copy:
                shutil.copyfileobj(file, copy, 2**20)

    def _stamps(self) -> list[Stamp | None]:
        return [_stamp_of(self.folder / name) for name in (COMPLETE, CONFIG)]

    def _open(self, name: str, limit: int) -> tuple[BufferedReader, Path]:
        """Return (open file, its path), under its temporary name first, as it moves from there."""
        for path in [self.folder / each for each in (self._temporary.get(name), name) if each]:
            with contextlib.suppress(FileNotFoundError):
                kept = in_cache(path)
                return open_regular(kept, limit), kept
        raise FileNotFoundError(2, "there is no such file", str(self.folder / name))


def read_consistently(folder: Path, read: Callable[[Snapshot], Result]) -> Result:
    """Call `read` with a snapshot of a folder until all it reads is of one generation.

    Raises:
        ArtifactError: `read` raises it although nobody writes there.
        FolderBusyError: the folder changed again and again.
    """
    known: dict[Stamp, str] = {}
    for attempt in range(TRIES):
        snapshot: Snapshot | None = None
        try:
            snapshot = Snapshot(folder, known)
            return read(snapshot)
        except FolderChangedError:
            pass
        except ArtifactError:
            if snapshot is None or not snapshot.changed:
                raise
        time.sleep(PAUSE * attempt / TRIES)
    raise FolderBusyError(
        f"{folder}: was written anew {TRIES} times while it was read; try again when nobody writes "
        "to it."
    )


def check_digest(path: Path, digest: str, expected: str, size: int) -> None:
    """Make sure that a file has the SHA-256 that is expected; its size is for the error.

    Raises:
        ArtifactError: it has another.
    """
    if digest != expected:
        raise ArtifactError(
            f"{path}: damaged or changed since it was written ({size} bytes, checksum differs)."
        )


def in_cache(path: Path) -> Path:
    """Return the file that a link in the hub's cache stands for; any other path as it is.

    That cache keeps files in `blobs`, under their digests, and in `snapshots/COMMIT` links to them.
    """
    try:
        target = os.readlink(path)
    except (OSError, ValueError):
        return path
    kept = _IN_CACHE.fullmatch(target.replace(os.sep, "/"))
    return path.parent / target if kept else path


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _stamp_of(path: Path) -> Stamp | None:
    try:
        return _stamp(os.lstat(path))
    except OSError:
        return None
