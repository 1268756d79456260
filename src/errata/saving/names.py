"""What the files of an artifact are called, and which names are no such. It opens none of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from errata.errors import ArtifactError

CONFIG, TENSORS, LEDGER = "edit_config.json", "edit_model.safetensors", "edits.jsonl"
FILES = (TENSORS, LEDGER, CONFIG)
"""What every artifact has, the one that names the others last."""
PART = ".safetensors"
COMPLETE = ".edit_complete"

_PART_NAME = re.compile(r"[a-z][a-z0-9_]*-\d{5,9}\.safetensors")
_BESIDE = re.compile(r"(?P<name>.+?)(\.(?P<token>[0-9a-f]{8}))?\.new")


def is_artifact(path: str | Path) -> bool:
    """Whether a folder holds edits (and not, say, a base model).

    Raises:
        ArtifactError: nobody may look into it.
    """
    if not str(path).strip():
        return False
    for name in (CONFIG, COMPLETE):
        try:
            os.lstat(Path(path) / name)
            return True
        except PermissionError as error:
            raise unreadable(error) from error
        except (OSError, ValueError):  # no such folder; no path at all
            continue
    return False


def is_part(name: str) -> bool:
    """Whether a method's part may be called so: a bare name and a number,
    `folio-00003.safetensors`.
    """
    return _PART_NAME.fullmatch(name) is not None


def is_own(name: str) -> bool:
    """Whether a file of an artifact may be called so."""
    return name in FILES or is_part(name)


def beside(name: str, token: str) -> str:
    """What a file is called until it takes its place."""
    return f"{name}.{token}.new"


def stands_beside(name: str) -> tuple[str, str] | None:
    """(the file whose place it is to take, the writer's token) of what `beside` named; of version
    0.1, without a token.
    """
    found = _BESIDE.fullmatch(name)
    return (found["name"], found["token"] or "") if found else None


def unreadable(error: OSError) -> ArtifactError:
    """What to say of a file that cannot be read."""
    return ArtifactError(f"{error.filename}: cannot be read ({error.strerror or error}).")
