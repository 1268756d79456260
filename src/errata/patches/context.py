"""`ContextPatch`: text put in front of prompts inside the model's own forward.

The edited model asked `prompt` is the base model asked `context + prompt`, token for token, with
nothing to change in the caller: forward, labels and loss, scores, batches, padding on either side,
generation with and without a cache work as before. Outputs have the columns that were given; those
before the prompt's last token belong to whatever token is there.

The context is chosen once per prompt, from the prompt alone (see `routed`), by the method. It is
put before a plain text; in a conversation, before the user's last message, inside the user's turn
(see `question`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.errors import ConfigError
from errata.lm import LM
from errata.patches.base import Arguments, idle, patches_idle
from errata.patches.forward_state import CacheState, column_mask
from errata.patches.grown import (
    COLUMNS,
    GROWN,
    WIDER,
    check_growable,
    check_length,
    continued,
    route_of,
    shifted_positions,
)
from errata.patches.question import insert_context
from errata.patches.routed import ForwardState, RoutedPatch, last_columns, last_token
from errata.words.names import names_in

ContextFor = Callable[[list[str]], Sequence[tuple[str, ...]]]
"""Prompts -> the context of each: pieces of text in reading order, () for none.

The pieces and the prompt are joined without anything between them. Pieces that do not fit the
model's context length are left out from the first on, so the most important one is last. The
function may run the model, which is then the base model. It must give a prompt the same context
each time, since contexts are cached until the patch comes off.
"""
MAX_CACHED = 4096
"""Prompts whose contexts are cached."""

_ROOM: ContextVar[int] = ContextVar("room", default=0)


@contextmanager
def leaving_room(tokens: int) -> Iterator[None]:
    """Make contexts leave at least so many tokens for the answer, within a `with` block."""
    token = _ROOM.set(tokens)
    try:
        yield
    finally:
        _ROOM.reset(token)


def room_left(lm: LM, room: int | None) -> int:
    """Return the tokens of the model's context length that are left for the answer, at least.

    See `ContextPatch`; 0 where the model has no such length.
    """
    limit = lm.context_length
    return max(_ROOM.get(), limit // 4 if room is None else room) if limit else 0


class ContextPatch(RoutedPatch):
    """Put text in front of prompts.

    A forward raises `ConfigError` where the prompt is not known (embeddings instead of ids) or the
    context cannot be inserted (a cache of fixed size, or a mask that is not (batch, width): both
    are made for the tokens given), `PromptTooLongError` where context, prompt and answer outgrow
    the model's context length.

    Args:
        context_for: chooses the contexts. None: the patch is empty, the base model answers.
        room: tokens of the model's context length that are left for the answer, or more within
            `leaving_room`; None: a quarter of it.
    """

    grows = True

    def __init__(self, context_for: ContextFor | None = None, room: int | None = None) -> None:
        super().__init__()
        self.context_for = context_for
        self.room = room
        self._cached: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}

    @property
    def empty(self) -> bool:
        """Whether no prompt gets a context."""
        return self.context_for is None or idle()

    @property
    def wider(self) -> int:
        """The columns of the contexts."""
        state = self._pass
        if not self.grows or state is None or state.route is None:
            return 0
        return int(state.route[:, WIDER].max())

    def finds(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[bool]:
        """Return which prompts have a context."""
        found = self.with_contexts(lm, prompts)
        return [ids != given for ids, given in zip(found, prompts, strict=True)]

    def keeps_cache(self, cache: Any, ids: Tensor, prompt: Tensor) -> bool:
        """Whether there is no context in the cache, and none is to come."""
        known: CacheState | None = getattr(cache, self.mark, None)
        if known is None or known.decided_by != self._installation or self._lm is None:
            return False
        if bool((known.route[:, GROWN] > 0).any()):
            return False
        rows = [tuple(row[kept].tolist()) for row, kept in zip(ids, prompt, strict=True)]
        return self.with_contexts(self._lm, rows) == rows

    def with_contexts(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the token ids of prompts with their contexts, of token ids without padding."""
        if not self.installed or len(self._cached) > MAX_CACHED:
            self._cached = {}
        room, cached = _ROOM.get(), self._cached
        results = {ids: cached.get((room, ids)) for ids in dict.fromkeys(prompts)}
        new = [ids for ids, result in results.items() if result is None]
        if new and not self.empty:
            contexts = self._contexts([lm.questions(ids) for ids in new])
            for ids, pieces in zip(new, contexts, strict=True):
                results[ids] = cached[room, ids] = self._insert_pieces(lm, ids, pieces)
        return [results[ids] or ids for ids in prompts]

    def _contexts(self, questions: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Return the contexts of conversations, each given by its questions, the last first.

        The context is that of the last question; where it has none and names nothing, that of all
        questions together.
        """
        if self.context_for is None:
            return [()] * len(questions)
        with patches_idle():
            contexts = dict(enumerate(self.context_for([turns[0] for turns in questions])))
            unanswered = [
                i
                for i, turns in enumerate(questions)
                if len(turns) > 1 and not (contexts[i] or names_in(turns[0]))
            ]
            if unanswered:
                texts = ["\n".join(reversed(questions[i])) for i in unanswered]
                contexts |= zip(unanswered, self.context_for(texts), strict=True)
        return list(contexts.values())

    def _insert_pieces(
        self, lm: LM, ids: tuple[int, ...], pieces: tuple[str, ...]
    ) -> tuple[int, ...]:
        """Return the ids with as many of the last pieces as leave room for the answer."""
        if not pieces:
            return ids
        conversation = lm.conversation(ids)
        limit, room = lm.context_length, room_left(lm, self.room)
        lengths = [
            len(lm.tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces
        ]
        for first in range(len(pieces)):
            estimate = sum(lengths[first:]) + len(ids) + room
            if limit and estimate > limit + len(pieces):  # far too long to be worth encoding
                continue
            joined = insert_context(lm, ids, conversation, "".join(pieces[first:]))
            if not limit or len(joined) + room <= limit:
                return joined
        return ids

    # installed

    def _attach(self, lm: LM) -> None:
        self._cached = {}
        super()._attach(lm)

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        before = lm.model.register_forward_pre_hook(
            lambda _, args, kwargs: self._change(lm, self._arguments(args, kwargs)),
            prepend=True,
            with_kwargs=True,
        )
        return [before, lm.model.register_forward_hook(self._cut_output)]

    def _change(self, lm: LM, arguments: Arguments) -> tuple[tuple[()], Arguments] | None:
        """Return the arguments of a call with the contexts in; None where there is none."""
        if (state := self._pass) is None:
            return None
        if state.route is None:
            changed = self._insert(lm, arguments, state)
        else:
            changed = continued(lm, arguments, state, state.route)
        return None if changed is None else ((), {**arguments, **changed})

    def _insert(self, lm: LM, arguments: Arguments, state: ForwardState) -> Arguments | None:
        """Put contexts into a batch of prompts, and set `state.route` for later calls.

        The route is described in `grown`.
        """
        (rows, width), ids, mask = state.size, arguments.get("input_ids"), state.mask
        if state.ids is not None and state.ids.shape[1] > width:  # the cache was kept
            state.route = route_of(state.seen.long())
            return None
        device = arguments["inputs_embeds"].device if ids is None else ids.device
        attention = column_mask(arguments)
        if attention is None:
            attention = torch.ones(rows, width, dtype=torch.long)
        seen = attention[:, -width:].to(device).long()
        state.route = route_of(seen)
        if ids is None or mask is None:
            raise ConfigError(
                "with inputs_embeds it is not known what is asked, so no fact can be found for it; "
                "give input_ids."
            )
        return self._grow(lm, arguments, state, seen, mask)

    def _grow(
        self, lm: LM, arguments: Arguments, state: ForwardState, seen: Tensor, mask: Tensor
    ) -> Arguments | None:
        """Return the arguments to change so that contexts are read, and set the route; None where
        there are none.

        Args:
            lm: the model.
            arguments: those of the call.
            state: of the call.
            seen: (batch, width), the attention mask.
            mask: (batch, width) bool, True at the prompts.
        """
        ids, width = arguments["input_ids"], state.size[1]
        device = ids.device
        old = state.history.prompts
        nothing: tuple[int, ...] = ()
        found = state.in_rows(old, partial(self.with_contexts, lm), nothing)
        new = [ids or given for ids, given in zip(found, old, strict=True)]
        if new == old:
            return None
        check_growable(arguments, state)
        growth = [len(n) - len(o) for n, o in zip(new, old, strict=True)]
        grown = torch.tensor(growth, device=device)
        wider = max(0, int(grown.max()))
        ends = wider + last_token(mask) + 1  # where each prompt stops, in the new columns
        ids, seen = F.pad(ids, (wider, 0), value=lm.pad_id), F.pad(seen, (wider, 0))
        for row, prompt in enumerate(new):
            if growth[row]:
                stop = int(ends[row])
                start = stop - len(prompt)
                ids[row, :start], seen[row, :start] = lm.pad_id, 0
                ids[row, start:stop], seen[row, start:stop] = ids.new_tensor(prompt), 1
        state.route = route_of(seen, grown, wider)
        changed: Arguments = {"input_ids": ids, "attention_mask": seen}
        if lm.takes_position_ids:
            positions = arguments.get("position_ids")
            changed["position_ids"] = shifted_positions(positions, seen, mask, grown)
        if (labels := arguments.get("labels")) is not None:
            # nothing predicts the first column given
            changed["labels"] = F.pad(labels[:, 1:], (wider + 1, 0), value=-100)
        if isinstance(keep := arguments.get("logits_to_keep"), Tensor):
            changed["logits_to_keep"] = torch.where(keep < 0, keep, keep + wider)
        elif keep:
            changed["logits_to_keep"] = min(keep, width)
        if arguments.get("cache_position") is not None:
            changed["cache_position"] = torch.arange(wider + width, device=device)
        check_length(lm, seen.sum(-1) * (grown > 0))
        return changed

    def _cut_output(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output with only the columns that were given."""
        state = self._pass
        if state is None or state.mask is None or state.route is None:
            return None
        if not bool(state.route[:, WIDER].any()):
            return None
        return last_columns(output, state.size[1], state.route.shape[1] - COLUMNS)
