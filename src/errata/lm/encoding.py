"""Rows of token ids, padded batches of them, and which of their tokens are the prompt. It knows no
model and no tokenizer.

Which tokens of a sequence are the prompt is announced with `prompt_tokens`, so that a routed memory
can decide on the prompt alone whether the target stands behind it or not.
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
    """Say which tokens are the prompt.

    Args:
        mask: (batch, width), True at prompt tokens; later columns are not prompt. Columns count
            from the first token of a sequence, those that a key-value cache has read included.
            None: nobody says it.
        ids: (batch, width), the tokens, where they are all at hand.
    """
    token = _PROMPT.set((mask, ids))
    try:
        yield
    finally:
        _PROMPT.reset(token)


def announced_prompt_tokens() -> Tensor | None:
    """The mask given to the innermost `prompt_tokens`, if any."""
    return _PROMPT.get()[0]


def announced_prompt_ids() -> Tensor | None:
    """The tokens given to the innermost `prompt_tokens`, if any."""
    return _PROMPT.get()[1]


@dataclass(frozen=True)
class Row:
    """One encoded sequence: prompt, then target, then how the answer ends (a full stop, the end
    token).
    """

    ids: tuple[int, ...]
    prompt_length: int
    target_length: int = 0

    @property
    def ending_length(self) -> int:
        """Tokens behind the target."""
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
        """Each token's place in its own row, padding left out: with learned positions a row padded
        on the left is else another text.
        """
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    def label_positions(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, columns, labels), each (n,): where the tokens under `mask` are predicted, and what
        they are.
        """
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns - 1, self.input_ids[rows, columns]


def in_batches(
    items: Sequence[Item],
    call: Callable[[list[Item]], list[Result]],
    batch_size: int,
    size: Callable[[Item], int],
) -> list[Result]:
    """Apply `call` to batches of items of like size (little padding); results in the items' order."""
    order = sorted(range(len(items)), key=lambda i: size(items[i]))
    results: dict[int, Result] = {}
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        results.update(zip(part, call([items[i] for i in part]), strict=True))
    return [results[i] for i in range(len(items))]
