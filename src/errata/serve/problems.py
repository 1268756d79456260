"""What each error is to whoever sent the request: a status, a title, a line."""

from __future__ import annotations

from errata.errors import (
    EditError,
    ErrataError,
    PromptTooLongError,
    StorageError,
    UnknownNameError,
    UsageError,
)
from errata.serve.policy import RefusedError
from errata.serve.requests import StoppingError
from errata.serve.schemas import Problem

STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (UnknownNameError, 404, "not found"),
    (PromptTooLongError, 400, "prompt too long"),
    (EditError, 422, "edit not valid"),
    (RefusedError, 403, "refused by the policy"),
    (UsageError, 400, "request not valid"),
    (StorageError, 503, "ledger not available"),
    (StoppingError, 503, "stopping"),
    (ErrataError, 500, "not possible"),
)
"""Errors -> the status and title of their problem; the first that fits counts."""


def problem_of(error: Exception) -> Problem:
    """Return the problem that an error is."""
    for kind, status, title in STATUS:
        if isinstance(error, kind):
            return Problem.of(status, title, str(error))
    return Problem.of(500, "internal error", "the server failed; its log says why.")
