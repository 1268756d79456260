"""Forward calls whose prompts have grown by contexts: the route, positions, masks and lengths.

See `ContextPatch`. A route is (batch, 4 + width): the tokens that each row grew by, the columns
that the batch grew by, `UNDECIDED` or what a subclass decides, what it withholds (0: nothing), and
the attention mask.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.errors import ConfigError, PromptTooLongError
from errata.lm import LM
from errata.patches.base import Arguments
from errata.patches.forward_state import can_grow
from errata.patches.routed import ForwardState, last_token

GROWN, WIDER, DECIDED, WITHHELD, COLUMNS = 0, 1, 2, 3, 4
"""The columns of a route; and how many stand before the attention mask."""
UNDECIDED = -2
GREW = "grew"
"""A note of a history: whether any of its rows has a context."""


def route_of(seen: Tensor, grown: Tensor | None = None, wider: int = 0) -> Tensor:
    """Return a route of an attention mask (batch, width)."""
    route = F.pad(seen, (COLUMNS, 0))
    route[:, WIDER], route[:, DECIDED] = wider, UNDECIDED
    if grown is not None:
        route[:, GROWN] = grown
    return route


def shifted_positions(
    positions: Tensor | None, seen: Tensor, mask: Tensor, grown: Tensor
) -> Tensor:
    """Return the position ids (batch, columns) of prompts with contexts.

    A prompt begins at the position where it did, and what follows it is shifted. Rows without a
    context are as they were.

    Args:
        positions: (batch, width) or (1, width), those given; None: they count tokens from 0.
        seen: (batch, columns), the new attention mask.
        mask: (batch, width), True at the prompts, in the columns given.
        grown: (batch,), the tokens that each row grew by.
    """
    counted = (seen.cumsum(-1) - 1).clamp(min=0)
    if positions is None:
        return counted
    width = mask.shape[1]
    positions = positions.expand(mask.shape[0], width)
    start = positions.gather(1, mask.long().argmax(-1, keepdim=True))
    behind = torch.arange(width, device=mask.device) > last_token(mask)[:, None]
    counted = counted + start
    shifted = torch.where(
        behind | (grown == 0)[:, None], positions + grown[:, None], counted[:, -width:]
    )
    return torch.cat([counted[:, :-width], shifted], dim=1)


def continued(lm: LM, arguments: Arguments, state: ForwardState, route: Tensor) -> Arguments | None:
    """Return the arguments to change in a call on a cache with contexts in it; None if none are."""
    grown, notes = route[:, GROWN], state.history.notes
    if GREW not in notes:
        notes[GREW] = bool(grown.any())
    if not notes[GREW]:
        return None
    wider, seen = int(route[0, WIDER]), route[:, COLUMNS:]
    check_growable(arguments, state)
    width = state.size[1]
    columns = state.history.size[1] - width + wider  # the cache may hold more, of a patch inside
    mask, read = arguments.get("attention_mask"), seen.shape[1]
    if mask is not None and mask.shape[1] != columns - wider + width:
        raise ConfigError(
            f"the cache holds {columns} tokens, {wider} of them a context, and {width} more came "
            f"with a mask of {mask.shape[1]} columns instead of {columns - wider + width}; give "
            "the new tokens only, and a mask of all that were given."
        )
    whole = F.pad(seen, (0, max(0, columns + width - read)), value=1)[:, : columns + width]
    if mask is not None and columns + width > read:
        whole = torch.cat([whole[:, :read], mask[:, read - wider :].to(whole)], dim=1)
    changed = {"attention_mask": whole}
    if lm.takes_position_ids:
        positions = arguments.get("position_ids")
        if positions is None:
            given = state.seen.long().cumsum(-1) - 1
            changed["position_ids"] = given[:, -width:].to(grown.device) + grown[:, None]
        else:
            changed["position_ids"] = positions + grown[:, None]
    if arguments.get("cache_position") is not None:
        changed["cache_position"] = arguments["cache_position"] + wider
    check_length(lm, whole.sum(-1) * (grown > 0))
    return changed


def check_growable(arguments: Arguments, state: ForwardState) -> None:
    if not can_grow(arguments, state.cache):
        raise ConfigError(
            "a context was found for this prompt, and a cache of fixed size, or a mask made for "
            "it, has no place for more tokens than were given; leave out cache_implementation, so "
            "that the cache grows."
        )


def check_length(lm: LM, lengths: Tensor) -> None:
    if lm.context_length and int(lengths.max()) > lm.context_length:
        raise PromptTooLongError(
            f"the context, the prompt and its answer take {int(lengths.max())} tokens; this model "
            f"reads {lm.context_length}. Ask for fewer new tokens, or leave more room to answers "
            "(the setting room)."
        )
