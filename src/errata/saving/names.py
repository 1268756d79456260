"""Names of an artifact's files, and of those that are being written. It opens no file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from errata.errors import ArtifactError

CONFIG, TENSORS, LEDGER = "edit_config.json", "edit_model.safetensors", "edits.jsonl"
FILES = (TENSORS, LEDGER, CONFIG)
"""The files that every artifact has; the config, which has the others' checksums, is last."""
IMAGES = "base_images"
"""The field of a config that names the pipeline which edits of images were written for."""
PART = ".safetensors"
COMPLETE = ".edit_complete"
"""The marker of a transaction whose files are complete."""

_PART_NAME = re.compile(r"[a-z][a-z0-9_]*-\d{5,9}\.safetensors")
_TEMPORARY_NAME = re.compile(r"(?P<name>.+?)(\.(?P<token>[0-9a-f]{8}))?\.new")


def is_artifact(path: str | Path) -> bool:
    """Return whether a folder holds edits (and not, say, a base model).

    Raises:
        ArtifactError: the folder may not be read.
    """
    if not str(path).strip():
        return False
    for name in (CONFIG, COMPLETE):
        try:
            os.lstat(Path(path) / name)
            return True
        except PermissionError as error:
            raise unreadable(error) from error
        except (OSError, ValueError):  # no such folder; not a path
            continue
    return False


def is_part(name: str) -> bool:
    """Return whether this can be a part's file: word and number, `folio-00003.safetensors`."""
    return _PART_NAME.fullmatch(name) is not None


def is_artifact_file(name: str) -> bool:
    """Return whether this can be a file of an artifact."""
    return name in FILES or is_part(name)


def temporary_name(name: str, token: str) -> str:
    """Return the name of a file until it is moved to its place; the token is its writer's."""
    return f"{name}.{token}.new"


def parse_temporary_name(name: str) -> tuple[str, str] | None:
    """Return (final name, token) of a `temporary_name`, None if it is none.

    The token is empty where version 0.1 wrote the file.
    """
    match = _TEMPORARY_NAME.fullmatch(name)
    return (match["name"], match["token"] or "") if match else None


def unreadable(error: OSError) -> ArtifactError:
    """Return the error to raise for a file that cannot be read."""
    return ArtifactError(f"{error.filename}: cannot be read ({error.strerror or error}).")
