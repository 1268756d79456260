"""Push an artifact to a repository of the hub: its own files and its card, in one commit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token

from errata.errors import HubError, UsageError, quoted
from errata.hub import problems
from errata.hub.bases import published_base
from errata.hub.card import About, card_of
from errata.hub.download import is_repository_name
from errata.saving import CONFIG, Header, copy_artifact, read_artifact
from errata.saving.names import is_part

CARD = "README.md"


@dataclass(frozen=True)
class CommitOptions:
    """How a repository is written, in the words of `huggingface_hub`.

    Attributes:
        private: make a new repository private; of one that is there, make sure that it is.
        token: a token to write with, True for the one that was logged in with; None looks for it.
        revision: the branch; None is the main one.
        create_pr: open a pull request instead of writing into the branch.
        message: of the commit; None says how many edits there are.
        description: of the commit.
    """

    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    description: str | None = None


@dataclass(frozen=True)
class Preview:
    """What a push would send: the card, and (name, bytes) of each file, the card among them."""

    card: str
    files: Sequence[tuple[str, int]]


def preview(folder: str | Path, repo: str, about: About) -> Preview:
    """Return what `push` would send, without a network.

    Raises:
        UsageError: the repository's name is none, or what is said about the edits is not right.
        ArtifactError: the folder is missing, damaged or of another version.
    """
    _check_name(repo)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        header = _staged(folder, Path(place), about)
        card = card_of(header, repo, about)
        Path(place, CARD).write_text(card, encoding="utf-8", newline="")
        names = (*sorted(header.checksums), CONFIG, CARD)
        return Preview(card, [(name, Path(place, name).stat().st_size) for name in names])


def push(folder: str | Path, repo: str, about: About, options: CommitOptions | None = None) -> str:
    """Push a folder of edits and return the address of the commit, or of its pull request.

    The repository is made if there is none. Files of the edits that were there before and are no
    longer the edits' are taken out; others are left alone, but for the card, which is written anew.

    Raises:
        UsageError: the repository's name is none, it holds a base model, or is public and should
            not be; or the options, or what is said about the edits, are not right.
        ArtifactError: the folder is missing, damaged or of another version.
        HubError: the hub refuses, or cannot be reached.
    """
    _check_name(repo)
    options = options or CommitOptions()
    if options.create_pr and options.revision is not None:
        raise UsageError("a pull request is for the main branch; leave the revision out.")
    if not isinstance(options.token, str) and get_token() is None:
        raise HubError(f"{repo}: no token to write with; `hf auth login` takes one, or $HF_TOKEN.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        header = _staged(folder, Path(place), about)
        card_of(header, repo, about)  # fails before anything is sent
        with problems.named(repo):
            return _sent(Path(place), header, repo, about, options)


def _check_name(repo: str) -> None:
    if not is_repository_name(repo):
        raise UsageError(
            f"{quoted(repo)} is no name of a repository; it is user/name, of letters, digits, '-', "
            "'_' and '.'."
        )


def _staged(folder: str | Path, place: Path, about: About) -> Header:
    """Copy the artifact's files, with the base model named as others know it.

    Return the folder's own header: figures name its generation.
    """
    read_artifact(folder)
    header = copy_artifact(Path(folder), place)
    base = published_base(header, about.base_model)
    if base.name != header.base_name:
        config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base.name
        text = json.dumps(config, indent=1, ensure_ascii=False)
        (place / CONFIG).write_bytes(f"{text}\n".encode())
    return header


def _sent(place: Path, header: Header, repo: str, about: About, options: CommitOptions) -> str:
    api = HfApi(token=options.token)
    repo = api.create_repo(repo, private=options.private, exist_ok=True).repo_id
    branch = options.revision
    if branch is not None and not branch.startswith("refs/pr"):
        api.create_branch(repo, branch=branch, exist_ok=True)
    there = api.model_info(repo, revision=branch)
    if options.private and not there.private:
        raise UsageError(f"{repo} is there and public; make it private on its page, then push.")
    names = {file.rfilename for file in there.siblings or ()}
    if "config.json" in names:
        raise UsageError(f"{repo} holds a base model; push the edits to a repository of their own.")
    card = card_of(header, repo, about)
    (place / CARD).write_text(card, encoding="utf-8", newline="")
    own = {*header.checksums, CONFIG, CARD}
    stale = sorted(name for name in names - own if is_part(name))
    count = "1 edit" if len(header.edits) == 1 else f"{len(header.edits)} edits"
    commit: Any = api.upload_folder(
        repo_id=repo,
        folder_path=place,
        allow_patterns=sorted(own),
        delete_patterns=stale or None,
        commit_message=options.message or f"{count} by {header.method}",
        commit_description=options.description,
        revision=branch,
        create_pr=options.create_pr or None,
    )
    return str(commit.pr_url if options.create_pr and commit.pr_url else commit.commit_url)
