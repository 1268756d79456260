"""Rows of token ids, padded batches of rows, and which of their tokens are the prompt.

Which tokens of a batch are the prompt is announced with `prompt_tokens`, so that a routed memory
decides on the prompt alone, whether or not the target follows it. This knows no model and no
tokenizer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

_PROMPT: ContextVar[tuple[Tensor | None, Tensor | None]] = ContextVar(
    "prompt", default=(None, None)
)


@contextlib.contextmanager
def prompt_tokens(mask: Tensor | None, ids: Tensor | None = None) -> Iterator[None]:
    """Announce which tokens are the prompt, for the length of a `with` block.

    Args:
        mask: (batch, width) bool, True at prompt tokens; later columns are not prompt. Columns
            count from the first token of a sequence, including those already in a key-value cache.
            None: not announced.
        ids: (batch, width), the tokens, where all are known.
    """
    token = _PROMPT.set((mask, ids))
    try:
        yield
    finally:
        _PROMPT.reset(token)


def announced_prompt_tokens() -> Tensor | None:
    """Return the mask given to the innermost `prompt_tokens`, if any."""
    return _PROMPT.get()[0]


def announced_prompt_ids() -> Tensor | None:
    """Return the tokens given to the innermost `prompt_tokens`, if any."""
    return _PROMPT.get()[1]


@dataclass(frozen=True)
class Row:
    """One encoded sequence: the prompt, the target, the ending (a full stop, the end token)."""

    ids: tuple[int, ...]
    prompt_length: int
    target_length: int = 0

    @property
    def ending_length(self) -> int:
        """Number of tokens after the target."""
        return len(self.ids) - self.prompt_length - self.target_length


@dataclass(frozen=True)
class Batch:
    """Padded rows. All tensors are (batch, width); the masks are bool."""

    input_ids: Tensor
    attention_mask: Tensor
    prompt_mask: Tensor
    target_mask: Tensor
    ending_mask: Tensor

    @property
    def position_ids(self) -> Tensor:
        """Each token's index in its own row, not counting padding.

        Without them, a model with learned positions reads a left-padded row as another text.
        """
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    def label_positions(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (rows, columns, labels), (n,) each: where tokens in `mask` are predicted."""
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns - 1, self.input_ids[rows, columns]


def in_batches(
    items: Sequence[Item],
    call: Callable[[list[Item]], list[Result]],
    batch_size: int,
    size: Callable[[Item], int],
) -> list[Result]:
    """Apply `call` to batches of items of similar size, to pad little; return results in order."""
    order = sorted(range(len(items)), key=lambda i: size(items[i]))
    results: dict[int, Result] = {}
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        results.update(zip(part, call([items[i] for i in part]), strict=True))
    return [results[i] for i in range(len(items))]
