"""Every error a user can meet, as a tree.

::

    ErrataError                    anything errata raises on purpose
    ├── UsageError                 the call or the input is wrong; the command line exits with 2
    │   ├── EditError              an edit or a case is not valid (file and line are named)
    │   ├── ConfigError            an unknown setting, or a value out of range
    │   ├── UnknownNameError       no such method, model, preset or edit id; one is suggested
    │   └── PromptTooLongError     a prompt does not fit the model's context
    ├── ArchitectureError          the model has no structure that edits can be written into
    ├── ArtifactError              a saved folder is missing, damaged, or of another version
    │   └── BaseMismatchError      the artifact was written for another base model
    ├── HubError                   the hub refuses, cannot be reached, or lacks what was asked for
    └── StorageError               the disk refused (full, read-only); nothing was half-written
        └── FolderBusyError        another process writes into the folder, or did meanwhile

`UsageError` and its children are also `ValueError`; the others are also `RuntimeError`.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable


class ErrataError(Exception):
    """Anything errata raises on purpose; `exit_code` is that of the command line."""

    exit_code = 1


class UsageError(ErrataError, ValueError):
    """The call or the input is wrong: change it and call again."""

    exit_code = 2


class EditError(UsageError):
    """An edit or a case is not valid: a field is missing, unknown or of the wrong type."""


class ConfigError(UsageError):
    """An unknown setting, or a value out of range."""


class UnknownNameError(UsageError):
    """No method, model, preset or edit has this name."""


class PromptTooLongError(UsageError):
    """A prompt, with its target, does not fit the model's context."""


class ArchitectureError(ErrataError, RuntimeError):
    """The model has no structure that edits can be written into."""


class ArtifactError(ErrataError, RuntimeError):
    """A saved folder is missing, damaged, or of another version."""


class BaseMismatchError(ArtifactError):
    """The artifact was written for another base model."""


class HubError(ErrataError, RuntimeError):
    """The hub refuses, cannot be reached, or lacks what was asked for."""


class StorageError(ErrataError, RuntimeError):
    """The disk refused a write; what was there before is unchanged."""


class FolderBusyError(StorageError):
    """Another process writes into the folder, or has since it was opened."""


def quoted(value: object, most: int = 80) -> str:
    """Return a value as an error shows it: invisible characters escaped, at most a line long."""
    shown = repr(value[: most + 1]) if isinstance(value, str) else reprlib.repr(value)
    return shown if len(shown) <= most + 2 else f"{shown[:most]}..."


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'wise'?"` when a known name is near, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name[:100].lower(), known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(known)}." if known else ""
