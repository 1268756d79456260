"""API keys: who may ask, who may edit, who may go back. Only their hashes are kept.

A file of keys is TOML::

    [[key]]
    name = "support"
    role = "edit"
    sha256 = "9f86d081884c7d65..."
    rate = "600/minute"

Without a file everything is allowed, and the server listens on this machine alone.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import limits
from fastapi import Depends, Request
from limits import RateLimitItem
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
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
        rate: requests in a stretch of time, at most; None is the server's.
    """

    name: str
    role: Role
    sha256: str
    rate: RateLimitItem | None = None


class Keys:
    """The keys of a server; none: everything is allowed.

    Args:
        rate: requests of each key in a stretch of time, at most; without keys, of all together.
    """

    def __init__(self, keys: Sequence[Key] = (), rate: RateLimitItem | None = None) -> None:
        self._keys, self._rate = tuple(keys), rate
        self._counted = MovingWindowRateLimiter(MemoryStorage())

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
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            return self.let(
                self.holder(given.strip()) if scheme.lower() == "bearer" else None, role
            )

        return Depends(actor)

    def let(self, key: Key | None, role: Role) -> str:
        """Let a key's holder do one thing, which counts; return the actor's name.

        Raises:
            HTTPException: there is no key, it may not do this, or does too much.
        """
        if not self:
            self._count(NOBODY, self._rate)
            return NOBODY
        if key is None:
            raise HTTPException(
                401, "send a key: 'Authorization: Bearer ...'.", {"WWW-Authenticate": "Bearer"}
            )
        if key.role < role:
            raise HTTPException(
                403, f"the key of {key.name} may {key.role.name.lower()}; this needs "
                f"{role.name.lower()}."
            )  # fmt: skip
        self._count(key.name, key.rate or self._rate)
        return key.name

    def _count(self, name: str, rate: RateLimitItem | None) -> None:
        """Count a request, unless it is one too many."""
        if rate is None or self._counted.hit(rate, name):
            return
        until = self._counted.get_window_stats(rate, name).reset_time
        raise HTTPException(
            429, f"more than {rate} by {name}; try again later.",
            {"Retry-After": str(max(1, math.ceil(until - time.time())))},
        )  # fmt: skip


def digest_of(key: str) -> str:
    """Return a key's hash, in hex. Keys are drawn at random, so a slow hash would add nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key() -> str:
    """Return a new key, of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def rate_of(text: str) -> RateLimitItem:
    """Read a rate like `600/minute`.

    Raises:
        UsageError: it is none.
    """
    try:
        return limits.parse(text)
    except ValueError as error:
        raise UsageError(f"{quoted(text)} is no rate; give one like 600/minute.") from error


def read_keys(path: Path, rate: RateLimitItem | None = None) -> Keys:
    """Read a file of keys.

    Args:
        rate: that of the keys which have none of their own.

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
    return Keys(keys, rate)


def _key(path: Path, number: int, entry: Any) -> Key:
    roles = {role.name.lower(): role for role in Role}
    wanted = {"name", "role", "sha256"}
    if not isinstance(entry, dict) or set(entry) - {"rate"} != wanted:
        raise UsageError(
            f"{path}: key {number} needs name, role and sha256, may have a rate, and nothing else."
        )
    name, role, digest = entry["name"], entry["role"], entry["sha256"]
    if not isinstance(name, str) or not name.strip() or len(name) > 200:
        raise UsageError(f"{path}: key {number} has no name of 1 to 200 characters.")
    if role not in roles:
        raise UsageError(f"{path}: key {number}, {quoted(name)}: the role is {', '.join(roles)}.")
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise UsageError(
            f"{path}: key {number}, {quoted(name)}: sha256 is 64 hex digits, of the key's hash."
        )
    rate = entry.get("rate")
    if rate is not None and not isinstance(rate, str):
        raise UsageError(f'{path}: key {number}, {quoted(name)}: a rate is like "600/minute".')
    return Key(name, roles[role], digest, rate_of(rate) if rate is not None else None)
