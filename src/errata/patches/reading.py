"""What is known of one forward call, and what a key-value cache has read: which tokens are the
prompt, which are padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.errors import ConfigError
from errata.lm.encoding import announced_prompt_ids, announced_prompt_tokens

MAIN = -1
"""The route of a sequence that the base model answers."""
READING = "errata_reading"
"""The attribute of a key-value cache that holds its `Reading`."""


@dataclass(frozen=True)
class Reading:
    """What a key-value cache has read, and what was decided.

    Attributes:
        decided_by: names the patch, as it stood on the model.
        ids: (batch, columns), the tokens given so far; None when they came as embeddings.
        seen: (batch, columns) bool, which of them are no padding; columns that it lacks are none.
        prompt: (batch, columns) bool, which of them are the prompt; columns that it lacks are not.
        route: (batch, ...), what was decided.
        more: columns that the cache has beside those given.
    """

    decided_by: str
    ids: Tensor | None
    seen: Tensor
    prompt: Tensor
    route: Tensor
    more: int = 0


@dataclass
class ForwardState:
    """One forward call of the model.

    Attributes:
        size: (batch, width) of the tokens that the model is given.
        mask: (batch, width), True at those of them that are the prompt; None when the prompt was in
            an earlier call.
        cache: the key-value cache given, if any.
        route: what has been decided, (batch, ...); None while nothing has.
        ids: (batch, columns), all tokens of the sequences, those of earlier calls too; None when
            they came as embeddings.
        seen, prompt: (batch, columns) bool of all tokens, as in `Reading`.
        again: columns at the front of this call that were read before and not asked for now.
        kept: what a patch keeps from one hook to the next.
    """

    size: tuple[int, int]
    mask: Tensor | None
    cache: Any
    route: Tensor | None
    ids: Tensor | None
    seen: Tensor
    prompt: Tensor
    again: int = 0
    kept: dict[str, Any] = field(default_factory=dict)


def prompt_mask(given: dict[str, Any], size: tuple[int, int], device: torch.device) -> Tensor:
    """Which tokens of a forward call with these arguments are the prompt: (batch, width), bool.

    What is announced (see `encoding.prompt_tokens`) counts first; else the tokens before the first
    label; else all.
    """
    mask = columns_seen(given, size, device)
    labels, announced = given.get("labels"), announced_prompt_tokens()
    if announced is not None:
        wide = for_rows(announced.to(device), size[0])
        if wide is not None:
            mask = mask & fitted(wide, size[1], False)
    elif isinstance(labels, Tensor):
        prompt = mask & ~_labelled(labels, mask)
        mask = torch.where(prompt.any(-1, keepdim=True), prompt, mask)
    return mask


def last_token(mask: Tensor) -> Tensor:
    """The last column under mask (batch, width), shape (batch,)."""
    return (mask * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).argmax(-1)


def for_rows(held: Tensor | None, rows: int) -> Tensor | None:
    """Per-sequence data for `rows` rows; beams and several answers repeat each sequence."""
    return None if held is None else rows_of(held, rows)


def last_columns(output: Any, width: int, wide: int) -> Any:
    """A model's output with only the last `width` of its `wide` columns; attention keeps what it
    looked at.
    """

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[:, -width:] if value.dim() == 3 and value.shape[1] == wide else value
        return tuple(cut(each) for each in value) if type(value) is tuple else value

    if isinstance(output, tuple):
        return cut(output)
    for name, value in output.items():
        output[name] = cut(value)
    return output


def rows_of(held: Tensor, rows: int) -> Tensor:
    if held.shape[0] == rows:
        return held
    if rows % held.shape[0]:
        raise ConfigError(
            f"{held.shape[0]} sequences were routed, then {rows} rows came with their cache."
        )
    return held.repeat_interleave(rows // held.shape[0], dim=0)


def fitted(mask: Tensor, width: int, rest: bool) -> Tensor:
    """A mask (batch, ...) cut or filled up to (batch, width)."""
    return F.pad(mask, (0, max(0, width - mask.shape[1])), value=rest)[:, :width]


def columns_seen(given: dict[str, Any], size: tuple[int, int], device: torch.device) -> Tensor:
    """Which of the tokens given are no padding, as far as a mask with columns tells: (batch,
    width), bool.
    """
    attention = given.get("attention_mask")
    if isinstance(attention, Tensor) and attention.dim() == 2:
        return attention[:, -size[1] :].to(device).bool()
    return torch.ones(size, dtype=torch.bool, device=device)


def first_seen(given: dict[str, Any], size: tuple[int, int], prompt: Tensor) -> Tensor:
    """The same of a call that begins; where there is no such mask, what is announced tells where
    padding ends.
    """
    attention = given.get("attention_mask")
    if attention is None or (isinstance(attention, Tensor) and attention.dim() == 2):
        return columns_seen(given, size, prompt.device)
    return prompt.cumsum(-1) > 0


def _labelled(labels: Tensor, mask: Tensor) -> Tensor:
    """The tokens from the first label on: what follows the target is no prompt either."""
    return (mask & (labels.to(mask.device) != -100)).cumsum(-1) > 0


def new_prompt(
    given: dict[str, Any], size: tuple[int, int], past: int, device: torch.device
) -> Tensor:
    """Which of the tokens given behind a cache of `past` columns belong to the prompt: (batch,
    width), bool.
    """
    mask = columns_seen(given, size, device)
    labels, announced = given.get("labels"), announced_prompt_tokens()
    if announced is not None:
        return (
            mask & fitted(rows_of(announced, size[0]).to(device), past + size[1], False)[:, past:]
        )
    if isinstance(labels, Tensor):
        return mask & ~_labelled(labels, mask)
    return mask if size[1] > 1 else torch.zeros_like(mask)


def announced_reading(rows: int, held: int) -> Reading:
    """What a cache has read that was filled without this patch, as far as the prompt is announced.

    Raises:
        ConfigError: it is not, so nobody knows what was asked.
    """
    ids, mask = announced_prompt_ids(), announced_prompt_tokens()
    if ids is None or mask is None or ids.shape[1] < held or mask.shape != ids.shape:
        raise ConfigError(
            "this cache was filled without these edits, so it is not known what was asked before; give the whole text "
            "without past_key_values."
        )
    return Reading(
        "", rows_of(ids, rows), rows_of(mask, rows), rows_of(mask, rows), torch.full((rows,), MAIN)
    )
