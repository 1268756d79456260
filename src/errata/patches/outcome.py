"""`Outcome`: which edits answer a prompt, told while the model runs, to whoever listens.

A server shows it beside each answer; asking `explain` would read the prompt once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a prompt is answered with.

    Attributes:
        name: `say`: an edit's answer; `read`: the base model's, with facts before the prompt;
            `withhold`: the base model's, without what was erased; `main`: the base model's.
        edit_ids: the edit that is said, or those that are read or withheld.
    """

    name: str
    edit_ids: tuple[str, ...] = ()


Listener = Callable[[Sequence[Outcome | None]], None]
"""Called once for each batch of prompts, with one outcome per row, before its first token; None
for a row that another patch answers.
"""
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def outcomes_told_to(listener: Listener | None) -> Iterator[None]:
    """Tell a listener, or nobody, what the prompts of this thread's calls are answered with."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def listener() -> Listener | None:
    """Return who listens in this thread, if anyone does."""
    return _LISTENER.get()
