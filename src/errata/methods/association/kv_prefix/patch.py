"""`KeyValuePrefix`: keys and values of texts, in front of the prompts that they are relevant to.

A text's keys and values are what the model computes for it behind the opening, what a prompt begins
with: a beginning-of-text token, or all that a chat template puts in front of the user's first
words, so that a fact stands inside the user's turn. Where several stand in front of a prompt, none
attends to another. With positions (rotary, or looked up) each of them has those directly behind the
opening, and the prompt goes on behind the longest: windows in parallel (Ratner et al., arXiv
2212.10947), so that their order does not matter and no key is rotated again. Where distances are
counted by column (ALiBi, sliding windows), they stand one behind another, the best last, and
directly in front of what is read of the row, whatever its padding.

They are put into the key-value cache before a prompt is read; the caller's tokens, and the outputs
for them, stay as they are. A prompt's own opening is not attended to: the prefix has it. Behind
another opening than the usual one, such as a system message, facts are read when they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from errata.lm import LM
from errata.lm.cache import cache_in
from errata.lm.hooks import PerThread
from errata.methods.association.kv_prefix.prefix import (
    Opening,
    Prefix,
    opening_of,
    read_opening,
)
from errata.patches.base import Arguments, idle, patches_idle
from errata.patches.context import MAX_CACHED, ContextPatch, room_left
from errata.patches.grown import check_growable, check_length, route_of
from errata.patches.routed import ForwardState

MOST_OPENINGS = 8
"""Besides the usual one, behind which facts are kept that were read."""


@dataclass(frozen=True)
class _Placed:
    """The prefixes of a batch.

    Attributes:
        rows: the prefixes of each row, the opening first, the best last.
        lengths: columns that each row's take.
        wider: columns that the batch grows by.
        order: (batch, wider + width), which of the columns, prefixes first, stands where.
    """

    rows: list[list[Prefix]]
    lengths: list[int]
    wider: int
    order: Tensor

    def stacked(self, layer: int, kind: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the keys or values (batch, heads, wider, head width) of a layer."""
        example = next(getattr(row[0], kind)[layer] for row in self.rows if row)
        shape = (len(self.rows), example.shape[0], self.wider, example.shape[2])
        result = torch.zeros(shape, device=device, dtype=dtype)
        for place, prefixes in enumerate(self.rows):
            column = self.wider - self.lengths[place]
            for prefix in prefixes:
                part = getattr(prefix, kind)[layer]
                result[place, :, column : column + part.shape[1]] = part.to(device, dtype)
                column += part.shape[1]
        return result

    def ordered(self, columns: Tensor) -> Tensor:
        """Return keys or values (batch, heads, columns, head width) in their order.

        Of a sliding window the last columns are there; those in front of it nothing attends to.
        """
        gone = self.order.shape[1] - columns.shape[2]
        index = (self.order[:, gone:] - gone).clamp(min=0)
        index = index.to(columns.device)[:, None, :, None]
        return columns.gather(2, index.expand(-1, columns.shape[1], -1, columns.shape[3]))


class KeyValuePrefix(ContextPatch):
    """Put precomputed keys and values in front of prompts; contexts are edits' ids here.

    Args:
        read: returns the prefix of an edit, given by its id, behind an opening.
        room: see `ContextPatch`.

    Attributes:
        prefixes: by edit id.
        opening: what stands in front of them.
    """

    grows = False

    def __init__(self, read: Callable[[str, Opening], Prefix], room: int | None = None) -> None:
        super().__init__(room=room)
        self.read = read
        self.prefixes: Mapping[str, Prefix] = {}
        self.opening = Opening()
        self._others: dict[Opening, tuple[Opening, dict[str, Prefix]]] = {}
        self._chosen: dict[tuple[int, tuple[int, ...]], list[Prefix]] = {}
        self._filling: PerThread[tuple[Any, bool] | None] = PerThread(None)

    def chosen(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[list[Prefix]]:
        """Return the prefixes of prompts (token ids without padding), the best last."""
        if self.empty:
            return [[] for _ in prompts]
        room = room_left(lm, self.room)
        if len(self._chosen) > MAX_CACHED:
            self._chosen = {}
        cached, new = self._chosen, list[tuple[int, ...]]()
        for ids in dict.fromkeys(prompts):
            if (room, ids) not in cached:
                new.append(ids)
        if new:
            found = self._contexts([lm.questions(ids) for ids in new])
            for ids, names in zip(new, found, strict=True):
                prefixes = self._behind(lm, ids, names) if names else []
                while prefixes and lm.context_length:
                    if sum(each.length for each in prefixes) + len(ids) + room <= lm.context_length:
                        break
                    prefixes = prefixes[1:]
                cached[room, ids] = prefixes
        return [cached[room, ids] for ids in prompts]

    def _behind(self, lm: LM, ids: tuple[int, ...], names: Sequence[str]) -> list[Prefix]:
        """Return the prefixes of edits behind a prompt's own opening."""
        opening = opening_of(lm, ids)
        if opening == self.opening:
            return [self.prefixes[name] for name in names]
        _, known = self._other(lm, opening)
        for name in names:
            if name not in known:
                with patches_idle():
                    known[name] = self.read(name, opening)
        return [known[name] for name in names]

    def _other(self, lm: LM, opening: Opening) -> tuple[Opening, dict[str, Prefix]]:
        """Return another opening than the usual one, read, and what was read behind it."""
        if (found := self._others.get(opening)) is None:
            with patches_idle():
                found = read_opening(lm, opening), {}
            if len(self._others) >= MOST_OPENINGS:
                self._others = {}
            self._others[opening] = found
        return found

    def _opened(self, lm: LM, ids: tuple[int, ...]) -> Opening:
        """Return a prompt's opening, read."""
        opening = opening_of(lm, ids)
        return self.opening if opening == self.opening else self._other(lm, opening)[0]

    def with_contexts(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return what differs from the prompts where there are prefixes."""
        found = self.chosen(lm, prompts)
        return [(-1, *ids) if each else ids for ids, each in zip(prompts, found, strict=True)]

    # installed

    def _attach(self, lm: LM) -> None:
        self._chosen, self._others = {}, {}
        super()._attach(lm)

    def _grow(
        self, lm: LM, arguments: Arguments, state: ForwardState, seen: Tensor, mask: Tensor
    ) -> Arguments | None:
        """Put keys and values into the cache."""
        prompts = state.history.prompts
        nothing: list[Prefix] = []
        rows = state.in_rows(prompts, partial(self.chosen, lm), nothing)
        if not any(rows):
            return None
        check_growable(arguments, state)
        openings = [
            self._opened(lm, ids) if row else Opening()
            for ids, row in zip(prompts, rows, strict=True)
        ]
        placed, seen, growth = _place(openings, rows, seen)
        grown = torch.tensor(growth, device=seen.device)
        state.route = route_of(seen, grown, placed.wider)
        changed: Arguments = {
            "attention_mask": seen,
            lm.cache_name: self._filled(lm, arguments, placed),
        }
        if lm.takes_position_ids:
            positions = arguments.get("position_ids")
            if positions is None:
                width = state.size[1]
                positions = (state.seen.long().cumsum(-1) - 1).clamp(min=0)[:, -width:]
            changed["position_ids"] = positions.to(grown.device) + grown[:, None]
        if (places := arguments.get("cache_position")) is not None:
            changed["cache_position"] = places + placed.wider
        check_length(lm, seen.sum(-1) * (grown > 0))
        return changed

    def _filled(self, lm: LM, arguments: Arguments, placed: _Placed) -> Any:
        """Return the cache with the prefixes, to which the prompts' keys and values are added."""
        cache, keeps = cache_in(arguments), arguments.get("use_cache")
        if keeps is None:
            keeps = getattr(lm.model.config.get_text_config(), "use_cache", True)
        is_asked_for = cache is not None or keeps
        cache = DynamicCache(config=lm.model.config) if cache is None else cache
        device, dtype = lm.device, lm.model.dtype
        for layer in range(len(next(row[0] for row in placed.rows if row).keys)):
            cache.update(
                placed.stacked(layer, "keys", device, dtype),
                placed.stacked(layer, "values", device, dtype),
                layer,
            )
        update = cache.update

        def in_order(keys: Tensor, values: Tensor, layer: int, *args: Any, **more: Any) -> Any:
            found = [placed.ordered(each) for each in update(keys, values, layer, *args, **more)]
            kept = cache.layers[layer]
            stored = kept.keys.shape[2]  # fewer than all, of a sliding window
            kept.keys, kept.values = (each[:, :, -stored:] for each in found)
            return tuple(found)

        cache.update = in_order
        self._filling.set((cache, is_asked_for))
        return cache

    def _cut_output(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Leave the output as it is: it has the columns that were given."""

    def _after_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any
    ) -> Any:
        if idle():
            return None
        filling = self._filling.get()
        self._filling.set(None)
        if filling is None:
            return super()._after_forward(model, args, kwargs, output)
        cache, is_asked_for = filling
        del cache.update
        if not is_asked_for and output is not None:
            output = _without(cache, output)
        changed = super()._after_forward(model, args, kwargs, output)
        return output if changed is None else changed


def _without(cache: Any, output: Any) -> Any:
    """Return a model's output without a cache that was not asked for."""
    if isinstance(output, tuple):
        return tuple(part for part in output if part is not cache)
    return type(output)(**{name: part for name, part in output.items() if part is not cache})


def _place(
    openings: list[Opening], rows: list[list[Prefix]], seen: Tensor
) -> tuple[_Placed, Tensor, list[int]]:
    """Return where the prefixes stand, the attention mask, and the positions rows grow by.

    Args:
        openings: those of the rows.
        rows: the prefixes of each row.
        seen: (batch, width), the attention mask of what is given.
    """
    placed = [
        [*([opening.prefix] if opening.prefix else []), *row]
        for opening, row in zip(openings, rows, strict=True)
    ]
    lengths = [sum(each.length for each in row) for row in placed]
    wider, width = max(lengths), seen.shape[1]
    starts = seen.ne(0).int().argmax(-1).tolist()
    order = torch.arange(wider + width).repeat(len(rows), 1)
    mask = torch.cat([seen.new_zeros(len(rows), wider), seen], dim=1)
    for place, length in enumerate(lengths):
        if not length:
            continue
        own = len(openings[place].ids)
        start, given = wider + starts[place] + own, order[place].clone()
        mask[place, wider - length : wider] = 1
        mask[place, start - own : start] = 0
        order[place, :start] = torch.cat(
            [given[: wider - length], given[wider:start], given[wider - length : wider]]
        )
    growth = [max((each.length for each in row), default=0) for row in rows]
    return _Placed(placed, lengths, wider, order), mask.gather(1, order.to(mask.device)), growth
