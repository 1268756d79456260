"""How a repository names the base model of its edits: never by a path of whoever pushed them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from errata.errors import UsageError, quoted
from errata.hub.download import is_repository_name
from errata.saving import BUNDLED, Header


@dataclass(frozen=True)
class Base:
    """A base model as others find it.

    Attributes:
        name: what `load_base` takes; of a file or folder its own name, without those above it.
        kind: where it is: with errata, on the hub, or only known by the name of a file or folder
            that others must have.
    """

    name: str
    kind: Literal["bundled", "hub", "file", "local"]


def published_base(header: Header, given: str | None = None) -> Base:
    """Return the base model of edits as a repository names it.

    Args:
        header: what the artifact says.
        given: the base model's name on the hub, where the artifact names a folder.

    Raises:
        UsageError: what is given is no such name, or the edits know their base model better.
    """
    name = header.base_name
    if header.identity.file is not None:
        known = Base(_last_part(name), "file")
    elif name in BUNDLED:
        known = Base(name, "bundled")
    else:
        # one word may be an old name on the hub, or the folder that somebody had pushed before
        on_hub = "/" in name and is_repository_name(name)
        known = Base(name if on_hub else _last_part(name), "hub" if on_hub else "local")
    if given is None or given == known.name:
        return known
    if known.kind != "local":
        raise UsageError(
            f"these edits are of {quoted(known.name)}, not of {quoted(given)}; another name is for "
            "a base model that was a local folder."
        )
    if given in BUNDLED or not is_repository_name(given):
        raise UsageError(f"{quoted(given)} is no name of a model on the hub, e.g. user/model.")
    return Base(given, "hub")


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
