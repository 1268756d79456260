"""Copy an artifact's files, of one generation, and no other files of its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from errata.errors import StorageError
from errata.saving.artifact import Header
from errata.saving.names import CONFIG, unreadable
from errata.saving.reading import read_header
from errata.saving.snapshot import Snapshot, check_digest, read_consistently


def copy_artifact(folder: Path, goal: Path) -> Header:
    """Copy an artifact into a folder that is there, and return its header.

    Raises:
        ArtifactError: it is damaged or of another version.
        FolderBusyError: others wrote again and again while it was copied.
        StorageError: the disk refused.
    """

    def copy(snapshot: Snapshot) -> Header:
        header = read_header(snapshot)
        content = snapshot.content(CONFIG)
        digest = hashlib.sha256(content).hexdigest()
        check_digest(folder / CONFIG, digest, header.generation, len(content))
        for name, expected in header.checksums.items():
            snapshot.copy(name, expected, goal / name)
        (goal / CONFIG).write_bytes(content)
        return header

    try:
        return read_consistently(folder, copy)
    except OSError as error:
        if str(error.filename or "").startswith(str(folder)):
            raise unreadable(error) from error
        raise StorageError(f"{goal}: cannot be written ({error.strerror or error}).") from error
