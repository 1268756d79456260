"""Change several files of a folder at once: all of them or none, whatever interrupts it.

New files are written under temporary names, then a marker that says that they are complete, then
they are moved to their places. A writer that finds a marker finishes the moves first, and removes
files of a write that was interrupted before its marker. Nothing here knows the files' contents.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from errata.errors import ArtifactError, StorageError
from errata.saving.names import (
    COMPLETE,
    is_artifact_file,
    is_part,
    parse_temporary_name,
    temporary_name,
    unreadable,
)
from errata.storage.files import new_token, open_regular, sync_folder, write_new

_MAX_MARKER_BYTES = 2**26


def commit(
    folder: Path,
    contents: Iterable[tuple[str, bytes]],
    removed: Iterable[str],
    replaceable: Iterable[str],
) -> None:
    """Change the files of a locked, finished folder, all or none; unchanged files are kept.

    Args:
        contents: each file's name and new content, the config last.
        removed: files to remove.
        replaceable: files that may be replaced; another file of such a name is somebody else's.

    Raises:
        OSError, StorageError: the disk refused, or a file is in the way; what was there before
            still is.
    """
    token, replaceable = new_token(), set(replaceable)
    written: dict[str, str] = {}
    try:
        for name, content in contents:
            if name in replaceable and _has_content(folder / name, content):
                continue
            if name not in replaceable and os.path.lexists(folder / name):
                raise StorageError(
                    f"{folder / name}: is no part of what is saved here, and in the way; move it, "
                    "or save to another folder."
                )
            written[name] = temporary_name(name, token)
            write_new(folder / written[name], content)
        present = sorted(name for name in removed if os.path.lexists(folder / name))
        if not (written or present):
            return
        marker = folder / temporary_name(COMPLETE, token)
        write_new(marker, json.dumps({"placed": written, "gone": present}).encode())
        sync_folder(folder)
        os.replace(marker, folder / COMPLETE)
    except (OSError, StorageError):
        with contextlib.suppress(OSError):
            _remove_temporary(folder, token)
        raise
    sync_folder(folder)
    finish(folder)


def _has_content(path: Path, content: bytes) -> bool:
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
    """Finish an interrupted commit in a locked folder if it was complete, or remove its files.

    Raises:
        ArtifactError: its marker is damaged, or names other files than an artifact's; nothing was
            changed then.
        OSError: the disk refused; it can be finished later.
    """
    marker = read_marker(folder)
    if marker is not None:
        written, removed = marker
        for name, temporary in written.items():
            if os.path.lexists(folder / temporary):
                os.replace(folder / temporary, folder / name)
        for name in removed:
            (folder / name).unlink(missing_ok=True)
        sync_folder(folder)
        (folder / COMPLETE).unlink()
        sync_folder(folder)
    _remove_temporary(folder)


def abandon(folder: Path) -> None:
    """Remove the files of an interrupted commit in a locked folder, complete or not."""
    (folder / COMPLETE).unlink(missing_ok=True)
    _remove_temporary(folder)


def _remove_temporary(folder: Path, token: str | None = None) -> None:
    """Remove temporary files; with a token, only those of its writer."""
    for name in os.listdir(folder):
        parsed = parse_temporary_name(name)
        if parsed is None or token not in (None, parsed[1]):
            continue
        if is_artifact_file(parsed[0]) or parsed[0] == COMPLETE:
            (folder / name).unlink(missing_ok=True)


def read_marker(folder: Path) -> tuple[dict[str, str], list[str]] | None:
    """Return what a complete commit has to do yet; None if there is none.

    That is: final name -> temporary name of files to move, and names of files to remove.

    Raises:
        ArtifactError: the marker is damaged, or names other files than an artifact's.
    """
    path = folder / COMPLETE
    try:
        with open_regular(path, _MAX_MARKER_BYTES) as file:
            marker = json.loads(file.read())
        written, removed = marker["placed"], marker["gone"]
        if isinstance(written, list):  # as version 0.1 wrote it
            written = {name: f"{name}.new" for name in written}
        valid = isinstance(removed, list) and all(
            isinstance(name, str) and is_part(name) for name in removed
        )
        valid = valid and all(
            isinstance(temporary, str) and _is_temporary(temporary, name)
            for name, temporary in written.items()
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged, {type(error).__name__}: {error}") from error
    if not valid:
        raise ArtifactError(
            f"{path}: damaged, it names files that are not an artifact's; nothing of them was "
            "touched."
        )
    return written, removed


def _is_temporary(temporary: str, name: str) -> bool:
    parsed = parse_temporary_name(temporary)
    return is_artifact_file(name) and parsed is not None and parsed[0] == name
