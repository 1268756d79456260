"""Edits by the name of a hub's repository: downloaded into the hub's own cache, then read.

A text such as `user/my-errata` may name a repository where no file or folder has that name; a
`Path` never does. Only the files of an artifact are taken, whatever else the repository holds, and
reading them checks them as any folder's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from errata.errors import ArtifactError, HubError
from errata.hub import problems
from errata.progress import report
from errata.saving import CONFIG, Artifact, damage_named, is_artifact, read_artifact
from errata.saving.names import is_artifact_file


def is_repository_name(name: str | Path) -> bool:
    """Return whether this can be the name of a repository, `user/name` or `name`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return isinstance(name, str)


def find(name: str | Path, revision: str | None = None) -> Path | None:
    """Return the folder of the edits of this name, a local one or a repository's; None without any.

    Raises:
        ArtifactError: the repository's edits are damaged.
        HubError: the repository has edits, but not all of their files can be had.
    """
    if is_artifact(name):
        return Path(name)
    if not may_be_remote(name):
        return None
    try:
        config = _config_of(str(name), revision)
    except HubError:
        return None
    return _with_others(str(name), config)


def read(name: str | Path, revision: str | None = None) -> Artifact:
    """Read the edits of a folder, or of a repository, and check them.

    Args:
        name: a folder; or, as a text, the name of a repository.
        revision: of a repository: a branch, a tag or a commit; None is its main branch.

    Raises:
        ArtifactError: there are none of this name, or they are damaged or of another version.
        HubError: the repository has edits, but not all of their files can be had.
    """
    if is_artifact(name) or not may_be_remote(name):
        return read_artifact(name)
    try:
        config = _config_of(str(name), revision)
    except HubError as error:
        raise ArtifactError(
            f"{name}: not a folder of edits (there is none), and none from the hub "
            f"({str(error).removeprefix(f'{name}: ').rstrip('.')}). `errata edit MODEL --out "
            f"{name}` makes one."
        ) from error
    return read_artifact(_with_others(str(name), config))


def may_be_remote(name: str | Path) -> bool:
    """Return whether this is `user/name`, and no file or folder here has that name."""
    named_user = isinstance(name, str) and "/" in name and is_repository_name(name)
    return named_user and not os.path.lexists(name)


def _config_of(name: str, revision: str | None) -> Path:
    """Return the path of a repository's config, which says what other files there are."""
    with problems.named(name):
        return Path(hf_hub_download(name, CONFIG, revision=revision))


def _with_others(name: str, config: Path) -> Path:
    """Download the files that a config names, of the same commit; return their folder."""
    with damage_named(config):
        named = json.loads(config.read_bytes())["sha256"].keys()
    files = [file for file in named if is_artifact_file(file)]  # reading it refuses the others
    commit = config.parent.name
    for number, file in enumerate(files):
        report(f"downloading {name}", number, len(files))
        with problems.named(f"{name}, {file}"):
            hf_hub_download(name, file, revision=commit)
    return config.parent
