"""`ContextPatch`: text put in front of the prompt inside the model's own forward. Which text is the
affair of the methods.

The edited model asked `prompt` is the base model asked `context + prompt`, token for token, and
nobody has to ask
otherwise: forward, labels and loss, scores, batches, padding on either side, generation with and
without a cache work as before. Outputs have the columns that were given; before the prompt's last
token those tell of whatever token stands there.

What is put in front is decided once per prompt from the prompt alone (see `routed.py`), and where
it comes to stand follows from how the prompt was encoded: before a plain text, and in a
conversation before what the user says last, inside the user's turn (see `turns.told`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.errors import ConfigError, PromptTooLongError
from errata.lm import LM
from errata.lm.background import names_in
from errata.lm.chat import Conversation
from errata.lm.hooks import PerThread
from errata.patches.routed import ForwardState, RoutedPatch, last_columns, last_token
from errata.patches.turns import told

ContextFor = Callable[[list[str]], Sequence[tuple[str, ...]]]
"""Prompts -> what to put in front of each: pieces in reading order, () for nothing (the base model
answers).

Pieces that do not fit the model's context are left out, the first first: what matters most stands
last. They are joined as they are, and the prompt follows at once. The function may run the model,
and meets the base model then. It must answer a prompt the same way each time: what it said is
remembered until the patch is taken off.
"""
REMEMBERED = 4096

_ROOM: ContextVar[int] = ContextVar("room", default=0)


@contextmanager
def leaving_room(tokens: int) -> Iterator[None]:
    """While it lasts, what is put in front of a prompt leaves its answer so many tokens, at least."""
    outer = _ROOM.set(tokens)
    try:
        yield
    finally:
        _ROOM.reset(outer)


class ContextPatch(RoutedPatch):
    """Puts text in front of prompts.

    Args:
        context_for: what to put where. None: the patch is empty, the base model answers.
        room: tokens of the model's context that are left to the answer, or more within
            `leaving_room`; None: a quarter of it.

    A forward raises `ConfigError` where the prompt is not known (embeddings instead of ids) or a
    context cannot be put in (a cache of fixed size, or a mask that is not (batch, width): both are
    made for the tokens given), `PromptTooLongError` where an answer outgrows what it can read.
    """

    def __init__(self, context_for: ContextFor | None = None, room: int | None = None) -> None:
        super().__init__()
        self.context_for = context_for
        self.room = room
        self._asking = PerThread(False)
        self._remembered: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}

    @property
    def empty(self) -> bool:
        """There is nothing to put in front of anything."""
        return self.context_for is None or self._asking.get()

    def reads(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """What the model reads for prompts given as token ids (without padding): the same ids where
        there is no context.
        """
        if not self.installed or len(self._remembered) > REMEMBERED:
            self._remembered = {}
        room, known = _ROOM.get(), self._remembered
        found = {ids: known.get((room, ids)) for ids in dict.fromkeys(prompts)}
        new = [ids for ids, joined in found.items() if joined is None]
        if new and self.context_for is not None:
            readings = [lm.conversation(ids) for ids in new]
            contexts = self._contexts([reading.questions for reading in readings])
            for ids, reading, pieces in zip(new, readings, contexts, strict=True):
                found[ids] = known[room, ids] = self._joined(lm, ids, reading, pieces)
        return [found[ids] or ids for ids in prompts]

    def _contexts(self, questions: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """What to put in front of conversations, each given as what the user says, the last first.

        The last turn is looked up; where nothing bears on it and it names nothing of its own, the
        turns before it are.
        """
        if self.context_for is None:
            return [()] * len(questions)
        outer = self._pass
        with self._asking.temporarily(True):
            try:
                found = dict(enumerate(self.context_for([turns[0] for turns in questions])))
                more = [
                    i
                    for i, turns in enumerate(questions)
                    if len(turns) > 1 and not (found[i] or names_in(turns[0]))
                ]
                if more:
                    talks = ["\n".join(reversed(questions[i])) for i in more]
                    found |= zip(more, self.context_for(talks), strict=True)
            finally:
                self._pass = outer
        return list(found.values())

    def _joined(
        self, lm: LM, ids: tuple[int, ...], reading: Conversation, pieces: tuple[str, ...]
    ) -> tuple[int, ...]:
        limit = lm.context_length
        left = 0 if not limit else max(_ROOM.get(), limit // 4 if self.room is None else self.room)
        takes = [len(_tokens(lm, piece)) for piece in pieces]
        for first in range(len(pieces)):
            if limit and sum(takes[first:]) + len(ids) + left > limit + len(
                pieces
            ):  # far too long: not worth encoding
                continue
            joined = told(lm, ids, reading, "".join(pieces[first:]))
            if not limit or len(joined) + left <= limit:
                return joined
        return ids

    # installed

    def _listen(self, lm: LM) -> list[RemovableHandle]:
        self._remembered = {}
        before = lm.model.register_forward_pre_hook(
            lambda _, args, kwargs: self._widen(lm, self._given(args, kwargs)), with_kwargs=True
        )
        return [before, lm.model.register_forward_hook(self._cut)]

    def _widen(self, lm: LM, given: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
        """The forward's arguments with the context in; None: as they are."""
        now = self._pass
        if now is None:
            return None
        if now.route is None:
            widened = self._insert(lm, given, now)
        else:
            widened = _go_on(lm, given, now, now.route)
        return None if widened is None else ((), {**given, **widened})

    def _insert(self, lm: LM, given: dict[str, Any], now: ForwardState) -> dict[str, Any] | None:
        """Put contexts into a batch of prompts, and note in `now.route` what later calls with its
        cache must know.

        The route is (batch, 2 + width): by how many tokens each row grew, by how many columns the
        batch did, and which of its columns are to be seen.
        """
        (rows, width), ids, mask = now.size, given.get("input_ids"), now.mask
        device = given["inputs_embeds"].device if ids is None else ids.device
        seen = _columns(given.get("attention_mask"), width)
        seen = (
            torch.ones(rows, width, dtype=torch.long, device=device)
            if seen is None
            else seen.to(device).long()
        )
        nothing = torch.zeros(rows, 2, dtype=torch.long, device=device)
        now.route = torch.cat([nothing, seen], dim=1)
        if ids is None or mask is None:
            raise ConfigError(
                "with inputs_embeds it is not known what is asked, so no fact can be found for it; give input_ids."
            )
        old = [tuple(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]
        new = self.reads(lm, old)
        if new == old:
            return None
        _check_arguments(given, now)
        grown = torch.tensor(
            [len(n) - len(o) for n, o in zip(new, old, strict=True)], device=device
        )
        wider = max(0, int(grown.max()))
        end = wider + last_token(mask)  # of each prompt, in the new columns
        ids, seen = F.pad(ids, (wider, 0), value=lm.pad_id), F.pad(seen, (wider, 0))
        for row, prompt in enumerate(new):
            if prompt:
                stop = int(end[row]) + 1
                ids[row, : stop - len(prompt)], seen[row, : stop - len(prompt)] = lm.pad_id, 0
                ids[row, stop - len(prompt) : stop] = torch.tensor(prompt, device=device)
                seen[row, stop - len(prompt) : stop] = 1
        now.route = torch.cat([grown[:, None], torch.full_like(grown, wider)[:, None], seen], dim=1)
        widened = {"input_ids": ids, "attention_mask": seen}
        if lm.takes_position_ids:
            widened["position_ids"] = self._places(given.get("position_ids"), seen, mask, grown)
        if (
            labels := given.get("labels")
        ) is not None:  # nothing predicted the first column, and nothing must now
            widened["labels"] = F.pad(labels[:, 1:], (wider + 1, 0), value=-100)
        if isinstance(keep := given.get("logits_to_keep"), Tensor):
            widened["logits_to_keep"] = torch.where(keep < 0, keep, keep + wider)
        elif keep:
            widened["logits_to_keep"] = min(keep, width)
        if given.get("cache_position") is not None:
            widened["cache_position"] = torch.arange(wider + width, device=device)
        _check_length(lm, seen.sum(-1) * (grown > 0))
        return widened

    def _places(self, given: Tensor | None, seen: Tensor, mask: Tensor, grown: Tensor) -> Tensor:
        """Positions of the new columns: a prompt begins where it did, and what follows it is moved
        on.
        """
        counted = (seen.cumsum(-1) - 1).clamp(min=0)
        if given is None:
            return counted
        width = mask.shape[1]
        given = given.expand(mask.shape[0], width)
        first = mask.long().argmax(-1, keepdim=True)
        behind = torch.arange(width, device=mask.device) > last_token(mask)[:, None]
        moved = torch.where(
            behind, given + grown[:, None], counted[:, -width:] + given.gather(1, first)
        )
        return torch.cat([counted[:, :-width] + given.gather(1, first), moved], dim=1)

    def _cut(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The output with the columns that were given."""
        now = self._pass
        if now is None or now.mask is None or now.route is None or not bool(now.route[:, 1].any()):
            return None
        return last_columns(output, now.size[1], now.route.shape[1] - 2)


def _tokens(lm: LM, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def _go_on(
    lm: LM, given: dict[str, Any], now: ForwardState, route: Tensor
) -> dict[str, Any] | None:
    """The arguments of a call that goes on with the cache of one where contexts were put in."""
    grown, wider, seen = route[:, 0], int(route[0, 1]), route[:, 2:]
    if not bool(grown.any()):
        return None
    _check_arguments(given, now)
    held, new = int(now.cache.get_seq_length()), now.size[1]
    mask, read = given.get("attention_mask"), seen.shape[1]
    if mask is not None and mask.shape[1] != held - wider + new:
        raise ConfigError(
            f"the cache holds {held} tokens, {wider} of them a context, and {new} more came with a mask of {mask.shape[1]} "
            f"columns instead of {held - wider + new}; give the new tokens only, and a mask of all that were given."
        )
    whole = F.pad(seen, (0, max(0, held + new - read)), value=1)[:, : held + new]
    if mask is not None and held + new > read:
        whole = torch.cat([whole[:, :read], mask[:, read - wider :].to(whole)], dim=1)
    widened = {"attention_mask": whole}
    if lm.takes_position_ids:
        places = given.get("position_ids")
        widened["position_ids"] = (
            (whole.cumsum(-1) - 1)[:, -new:] if places is None else places + grown[:, None]
        )
    if given.get("cache_position") is not None:
        widened["cache_position"] = given["cache_position"] + wider
    _check_length(lm, whole.sum(-1) * (grown > 0))
    return widened


def _columns(mask: Any, width: int) -> Tensor | None:
    """The mask of the columns given, if it has columns."""
    return mask[:, -width:] if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _check_arguments(given: dict[str, Any], now: ForwardState) -> None:
    mask = given.get("attention_mask")
    if getattr(now.cache, "is_compileable", False) or not (
        mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)
    ):
        raise ConfigError(
            "a context was found for this prompt, and a cache of fixed size, or a mask made for it, has no place for more "
            "tokens than were given; leave out cache_implementation, so that the cache grows."
        )


def _check_length(lm: LM, lengths: Tensor) -> None:
    if lm.context_length and int(lengths.max()) > lm.context_length:
        raise PromptTooLongError(
            f"the context, the prompt and its answer take {int(lengths.max())} tokens; this model reads "
            f"{lm.context_length}. Ask for fewer new tokens, or leave more room to answers (the setting room)."
        )
