"""Change a folder's files all at once. It knows nothing of their contents.

New files are written beside the old ones, then a marker that says that they are complete, then they
move to their places. A writer that finds a marker finishes the move first; what a write left that
was cut off before its marker, it forgets.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from errata.errors import ArtifactError, StorageError
from errata.saving.names import COMPLETE, beside, is_own, is_part, stands_beside, unreadable
from errata.storage.files import new_token, open_regular, sync_folder, write_new

_MOST_MARKER = 2**26


def place(
    folder: Path, contents: Iterable[tuple[str, bytes]], gone: Iterable[str], mine: Iterable[str]
) -> None:
    """Change a locked, finished folder's files, all or none; those that are there as they should be
    stay.

    Args:
        contents: each file's name and what is to be in it, the config last.
        gone: files to leave out.
        mine: files that may be replaced; another that stands in the way belongs to somebody else.

    Raises:
        OSError, StorageError: the disk refused, or a file is in the way; what stood there before
            still does.
    """
    token, known = new_token(), set(mine)
    placed: dict[str, str] = {}
    try:
        for name, content in contents:
            if name in known and _holds(folder / name, content):
                continue
            if name not in known and os.path.lexists(folder / name):
                raise StorageError(
                    f"{folder / name}: is no part of what is saved here, and in the way; move it, or save to another folder."
                )
            placed[name] = beside(name, token)
            write_new(folder / placed[name], content)
        leaving = sorted(name for name in gone if os.path.lexists(folder / name))
        if not (placed or leaving):
            return
        marker = folder / beside(COMPLETE, token)
        write_new(marker, json.dumps({"placed": placed, "gone": leaving}).encode())
        sync_folder(folder)
        os.replace(marker, folder / COMPLETE)
    except (OSError, StorageError):
        with contextlib.suppress(OSError):
            _forget(folder, token)
        raise
    sync_folder(folder)
    finish(folder)


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content."""
    step, view = 2**22, memoryview(content)
    try:
        with open_regular(path, len(content)) as file:
            if os.fstat(file.fileno()).st_size != len(content):
                return False
            return all(
                file.read(step) == view[start : start + step]
                for start in range(0, len(content), step)
            )
    except OSError:
        return False


def finish(folder: Path) -> None:
    """Finish a write into a locked folder that was cut off after its files were complete; forget
    one cut off before.

    Raises:
        ArtifactError: its marker is damaged, or names what is no file of an artifact; nothing was
            touched then.
        OSError: the disk refused; it can be finished later.
    """
    marker = read_marker(folder)
    if marker is not None:
        placed, gone = marker
        for name, waiting in placed.items():
            if os.path.lexists(folder / waiting):
                os.replace(folder / waiting, folder / name)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        sync_folder(folder)
        (folder / COMPLETE).unlink()
        sync_folder(folder)
    _forget(folder)


def abandon(folder: Path) -> None:
    """Forget a write into a locked folder that was cut off, complete or not."""
    (folder / COMPLETE).unlink(missing_ok=True)
    _forget(folder)


def _forget(folder: Path, token: str | None = None) -> None:
    """Remove what unfinished writes have left; with a token, that writer's."""
    for name in os.listdir(folder):
        left = stands_beside(name)
        if left and (is_own(left[0]) or left[0] == COMPLETE) and token in (None, left[1]):
            (folder / name).unlink(missing_ok=True)


def read_marker(folder: Path) -> tuple[dict[str, str], list[str]] | None:
    """(name -> where its complete file waits, names of files that go) of a write that is under way,
    if there is one.

    Raises:
        ArtifactError: it is damaged, or names what is no file of an artifact.
    """
    path = folder / COMPLETE
    try:
        with open_regular(path, _MOST_MARKER) as file:
            said = json.loads(file.read())
        placed, gone = said["placed"], said["gone"]
        if isinstance(placed, list):  # as version 0.1 wrote it
            placed = {name: f"{name}.new" for name in placed}
        good = isinstance(gone, list) and all(
            isinstance(name, str) and is_part(name) for name in gone
        )
        good = good and all(
            isinstance(waiting, str) and _fits(name, waiting) for name, waiting in placed.items()
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged, {type(error).__name__}: {error}") from error
    if not good:
        raise ArtifactError(
            f"{path}: damaged, it names files that are not an artifact's; nothing of them was touched."
        )
    return placed, gone


def _fits(name: str, waiting: str) -> bool:
    left = stands_beside(waiting)
    return is_own(name) and left is not None and left[0] == name
