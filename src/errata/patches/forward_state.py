"""What is known of one forward call (`ForwardState`) and of a key-value cache (`CacheState`).

Above all: which tokens are the prompt, and which are padding. `routed` decides and acts on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.lm.cache import cache_in
from errata.lm.encoding import announced_prompt_ids, announced_prompt_tokens
from errata.patches.base import Arguments, Rows
from errata.patches.history import History, repeated, resized

Given = TypeVar("Given")
Found = TypeVar("Found")

MAIN = -1
"""The route of a sequence that the base model answers."""
CACHE_STATE = "errata_reading"
"""The attribute of a key-value cache that holds its `CacheState`."""


@dataclass(frozen=True)
class CacheState:
    """The tokens in a key-value cache, and what was decided on them.

    Attributes:
        decided_by: the installation of the patch that decided; an id.
        history: the tokens given so far.
        route: (batch, ...), what was decided.
        extra_columns: columns of the cache beside those given.
    """

    decided_by: str
    history: History
    route: Tensor
    extra_columns: int = 0


@dataclass
class ForwardState:
    """One forward call of the model.

    Attributes:
        size: (batch, width) of the tokens that the model is given.
        mask: (batch, width) bool, True at those of them that are the prompt; None when the prompt
            was in an earlier call.
        cache: the key-value cache given, if any.
        route: (batch, ...), what was decided; None before the decision.
        history: all tokens of the sequences, those of earlier calls too.
        reread: leading columns of this call that the caller gave in earlier calls.
        rows: those that the patch may change.
        kept: what a patch passes from one hook to the next.
    """

    size: tuple[int, int]
    mask: Tensor | None
    cache: Any
    route: Tensor | None
    history: History
    reread: int = 0
    rows: Rows = True
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> Tensor | None:
        """All tokens, (batch, columns); None when they came as embeddings."""
        return self.history.ids

    @property
    def seen(self) -> Tensor:
        """False at padding, (batch, columns) bool."""
        return self.history.seen

    @property
    def prompt(self) -> Tensor:
        """True at the prompt, (batch, columns) bool; columns that it lacks are no prompt."""
        return self.history.prompt

    def left_out(self, route: Tensor, nothing: int | bool = MAIN) -> Tensor:
        """Return a route (batch, ...) with `nothing` decided for rows that are another patch's."""
        if isinstance(self.rows, bool):
            return route
        kept = self.rows.to(route.device).view(-1, *[1] * (route.dim() - 1))
        return torch.where(kept, route, nothing)

    def in_rows(
        self, given: Sequence[Given], find: Callable[[list[Given]], Sequence[Found]], other: Found
    ) -> list[Found]:
        """Return what is found for each row, and `other` for rows that are another patch's."""
        if isinstance(self.rows, bool):
            return list(find(list(given)))
        mine = self.rows.tolist()
        found = iter(find([each for each, asked in zip(given, mine, strict=True) if asked]))
        return [next(found) if asked else other for asked in mine]


# which tokens are the prompt


def prompt_mask(arguments: Arguments, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the prompt's tokens in a call without earlier ones, (batch, width) bool.

    They are the announced ones (see `lm.encoding.prompt_tokens`), else those before the first
    label, else all.
    """
    mask = not_padding(arguments, size, device)
    labels, announced = arguments.get("labels"), announced_prompt_tokens()
    if announced is not None:
        mask = mask & resized(repeated(announced.to(device), size[0]), size[1], False)
    elif isinstance(labels, Tensor):
        prompt = mask & ~_labelled(labels, mask)
        mask = torch.where(prompt.any(-1, keepdim=True), prompt, mask)
    return mask


def new_prompt_mask(
    arguments: Arguments, size: tuple[int, int], past: int, device: torch.device
) -> Tensor | None:
    """Return the prompt's tokens in a call behind a cache of `past` columns, (batch, width) bool;
    None where there are none.

    They are the announced ones, else those before the first label, else all of several tokens and
    none of a single one, which is the answer's next.
    """
    labels, announced = arguments.get("labels"), announced_prompt_tokens()
    if announced is not None and announced.shape[1] <= past:
        return None
    if announced is None and size[1] == 1 and not isinstance(labels, Tensor):
        return None
    mask = not_padding(arguments, size, device)
    if announced is not None:
        prompt = repeated(announced, size[0]).to(device)
        mask = mask & resized(prompt, past + size[1], False)[:, past:]
    elif isinstance(labels, Tensor):
        mask = mask & ~_labelled(labels, mask)
    return mask if bool(mask.any()) else None


def _labelled(labels: Tensor, mask: Tensor) -> Tensor:
    """Return the tokens from the first label on: what follows the target is no prompt either."""
    return (mask & (labels.to(mask.device) != -100)).cumsum(-1) > 0


# which tokens are padding


def column_mask(arguments: Arguments) -> Tensor | None:
    """Return the attention mask of a call, if it is (batch, columns)."""
    mask = arguments.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def not_padding(arguments: Arguments, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the tokens that the attention mask keeps, (batch, width) bool; without it, all."""
    attention = column_mask(arguments)
    if attention is None:
        return torch.ones(size, dtype=torch.bool, device=device)
    return attention[:, -size[1] :].to(device).bool()


def first_not_padding(arguments: Arguments, size: tuple[int, int], prompt: Tensor) -> Tensor:
    """Return `not_padding` of a call without earlier ones, (batch, width) bool.

    Where an attention mask has no columns, padding ends where the prompt begins.
    """
    if arguments.get("attention_mask") is not None and column_mask(arguments) is None:
        return prompt.cumsum(-1) > 0
    return not_padding(arguments, size, prompt.device)


# shapes


def last_columns(output: Any, width: int, full_width: int) -> Any:
    """Return a model's output with only the last `width` of its `full_width` columns.

    Attention weights and caches stay as they are.
    """

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            has_columns = value.dim() == 3 and value.shape[1] == full_width
            return value[:, -width:] if has_columns else value
        return tuple(cut(part) for part in value) if type(value) is tuple else value

    if isinstance(output, tuple):
        return cut(output)
    for name, value in output.items():
        output[name] = cut(value)
    return output


# caches


def can_grow(arguments: Arguments, cache: Any) -> bool:
    """Return whether a call can be given more tokens: no cache or mask is of a fixed size."""
    mask = arguments.get("attention_mask")
    is_fixed = getattr(cache, "is_compileable", False)
    return not is_fixed and (mask is None or column_mask(arguments) is not None)


def caches_in(output: Any, cache: Any) -> list[Any]:
    """Return the key-value caches of a call: the one it was given, and those in its output."""
    parts = output if isinstance(output, tuple) else [cache_in(output)]
    return [part for part in (cache, *parts) if hasattr(part, "get_seq_length")]


def announced_cache_state(rows: int, columns: int) -> CacheState:
    """Return the state of a cache that was filled without this patch, from the announced prompt.

    Args:
        rows: rows of the call.
        columns: columns of the cache.

    Raises:
        ConfigError: no prompt that covers the cache is announced, so what was asked is unknown.
    """
    ids, mask = announced_prompt_ids(), announced_prompt_tokens()
    if ids is None or mask is None or ids.shape[1] < columns or mask.shape != ids.shape:
        raise ConfigError(
            "this cache was filled without these edits, so it is not known what was asked before; "
            "give the whole text without a cache."
        )
    prompt = repeated(mask, rows)
    history = History(repeated(ids, rows), prompt, prompt)
    return CacheState("", history, torch.full((rows,), MAIN))
