"""Read files that belong together while others may write. It takes no lock and writes nothing.

Where a marker says that new files are complete, those are read, wherever they are by then. A reader
that finds that the folder has moved on under it begins again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file as map_safetensors
from torch import Tensor

from errata.errors import ArtifactError, FolderBusyError
from errata.saving.names import COMPLETE, CONFIG, PART
from errata.saving.placing import read_marker
from errata.storage.files import digest_of, open_regular

TRIES, PAUSE = 40, 0.1
"""Times that a folder is read anew when it has moved on, and the longest pause between two, in
seconds.
"""
_MOST_TEXT, _MOST_TENSORS = 2**30, 2**36
"""Bytes that a file of text, and one of tensors, can have."""

Read = TypeVar("Read")
Stamp = tuple[int, ...]
"""What the system says of a file: another file, or the same with other contents, has another."""


class Moved(Exception):
    """The folder moved on under its reader."""


class Look:
    """One look at a folder: the files of one generation, unless it moves on meanwhile.

    Args:
        known: the SHA-256 of files that earlier looks have read.
    """

    def __init__(self, folder: Path, known: dict[Stamp, str]) -> None:
        self.folder = folder
        self._known = known
        self._began = self._state()
        marker = read_marker(folder)
        self._waiting = marker[0] if marker else {}

    @property
    def moved(self) -> bool:
        """Whether the folder is no longer as it was when it was first looked at."""
        return self._state() != self._began

    def content(self, name: str) -> bytes:
        """What is in a file.

        Raises:
            OSError: it cannot be read.
        """
        with self._open(name, _MOST_TENSORS if name.endswith(PART) else _MOST_TEXT)[0] as file:
            return file.read()

    def mapped(self, name: str, digest: str) -> dict[str, Tensor]:
        """The tensors of the file that has this SHA-256, mapped into memory.

        Raises:
            OSError: it cannot be read.
            ArtifactError: it is another.
            SafetensorError: there are no tensors in it.
            Moved: it was replaced meanwhile.
        """
        file, path = self._open(name, _MOST_TENSORS)
        with file:
            stamp = _stamp(os.fstat(file.fileno()))
            if stamp not in self._known:
                self._known[stamp] = digest_of(file)
            check_digest(self.folder / name, self._known[stamp], digest, stamp[2])
            try:
                tensors: dict[str, Tensor] = map_safetensors(path)
            except FileNotFoundError as error:
                raise Moved from error
            if _stamp_of(path) != stamp:  # while it is open, no other file can be given its number
                raise Moved
        return tensors

    def _state(self) -> list[Stamp | None]:
        return [_stamp_of(self.folder / name) for name in (COMPLETE, CONFIG)]

    def _open(self, name: str, most: int) -> tuple[BufferedReader, Path]:
        """(the open file, its path); first where it waits, since it moves from there to its place."""
        for path in [self.folder / each for each in (self._waiting.get(name), name) if each]:
            with contextlib.suppress(FileNotFoundError):
                return open_regular(path, most), path
        raise FileNotFoundError(2, "there is no such file", str(self.folder / name))


def look(folder: Path, read: Callable[[Look], Read]) -> Read:
    """What `read` makes of a folder's files, all of one generation.

    Raises:
        ArtifactError: they are damaged, as `read` says while nobody else writes.
        FolderBusyError: others have written again and again while it was read.
    """
    known: dict[Stamp, str] = {}
    for attempt in range(TRIES):
        seen: Look | None = None
        try:
            seen = Look(folder, known)
            return read(seen)
        except Moved:
            pass
        except ArtifactError:
            if seen is None or not seen.moved:
                raise
        time.sleep(PAUSE * attempt / TRIES)
    raise FolderBusyError(
        f"{folder}: was written anew {TRIES} times while it was read; try again when nobody writes to it."
    )


def check_digest(path: Path, found: str, wanted: str, size: int) -> None:
    """Make sure that a file is the one that has this SHA-256.

    Raises:
        ArtifactError: it is not.
    """
    if found != wanted:
        raise ArtifactError(
            f"{path}: damaged or changed since it was written ({size} bytes, checksum differs)."
        )


def _stamp(about: os.stat_result) -> Stamp:
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _stamp_of(path: Path) -> Stamp | None:
    try:
        return _stamp(os.lstat(path))
    except OSError:
        return None
