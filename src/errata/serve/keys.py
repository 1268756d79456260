"""API keys: who may ask, who may edit, who may go back. Only their hashes are kept.

A file of keys is TOML::

    [[key]]
    name = "support"
    role = "edit"
    sha256 = "9f86d081884c7d65..."

Without a file everything is allowed, and the server listens on this machine alone.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from errata.errors import UsageError, quoted

NOBODY = "anonymous"
"""The actor of a server without keys."""
PREFIX = "errata-"


class Role(IntEnum):
    """What a key may do: each role may do what those before it may."""

    ASK = 1
    EDIT = 2
    ADMIN = 3


@dataclass(frozen=True)
class Key:
    """A key by its hash.

    Attributes:
        name: who holds it; the actor of what is done with it.
        role: what it may do.
        sha256: the hash of the key, in hex.
    """

    name: str
    role: Role
    sha256: str


class Keys:
    """The keys of a server; none: everything is allowed."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return bool(self._keys)

    def holder(self, given: str) -> Key | None:
        """Return the key whose hash is that of a text, compared in constant time."""
        found, digest = None, digest_of(given)
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def need(self, role: Role) -> Any:
        """Return a dependency of FastAPI that lets a role in, and gives the actor's name."""

        async def actor(request: Request) -> str:
            if not self:
                return NOBODY
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            key = self.holder(given.strip()) if scheme.lower() == "bearer" else None
            if key is None:
                raise HTTPException(
                    401, "send a key: 'Authorization: Bearer ...'.", {"WWW-Authenticate": "Bearer"}
                )
            if key.role < role:
                raise HTTPException(
                    403, f"the key of {key.name} may {key.role.name.lower()}; this needs "
                    f"{role.name.lower()}."
                )  # fmt: skip
            return key.name

        return Depends(actor)


def digest_of(key: str) -> str:
    """Return a key's hash, in hex. Keys are drawn at random, so a slow hash would add nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key() -> str:
    """Return a new key, of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> Keys:
    """Read a file of keys.

    Raises:
        UsageError: it cannot be read, or an entry is not valid; which one is said.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: the keys cannot be read ({error}).") from error
    entries = found.get("key")
    if not isinstance(entries, list) or not entries or set(found) != {"key"}:
        raise UsageError(f"{path}: there is no [[key]] in it, or something else beside them.")
    keys = [_key(path, number, entry) for number, entry in enumerate(entries, start=1)]
    if len({key.name for key in keys}) < len(keys):
        raise UsageError(f"{path}: two keys have one name.")
    return Keys(keys)


def _key(path: Path, number: int, entry: Any) -> Key:
    roles = {role.name.lower(): role for role in Role}
    wanted = {"name", "role", "sha256"}
    if not isinstance(entry, dict) or set(entry) != wanted:
        raise UsageError(f"{path}: key {number} needs name, role and sha256, and nothing else.")
    name, role, digest = entry["name"], entry["role"], entry["sha256"]
    if not isinstance(name, str) or not name.strip() or len(name) > 200:
        raise UsageError(f"{path}: key {number} has no name of 1 to 200 characters.")
    if role not in roles:
        raise UsageError(f"{path}: key {number}, {quoted(name)}: the role is {', '.join(roles)}.")
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise UsageError(
            f"{path}: key {number}, {quoted(name)}: sha256 is 64 hex digits, of the key's hash."
        )
    return Key(name, roles[role], digest)
