"""`PassageReader`: passages that were computed once, and are read inside the model's forward.

Which passages a prompt reads is decided once per prompt (see `routed`), as the contexts of
`ContextPatch` are; here they are edits' ids. They are read from the prompt's last token on, when
all of it has been seen: what stands before it is not changed. The caller's tokens, and the columns
of the cache, stay as they are. Rows without passages are the base model's. How they are read is up
to the subclasses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.begun import BegunRows
from errata.lm.hooks import PerThread
from errata.patches.base import Arguments
from errata.patches.context import MAX_CACHED, ContextPatch
from errata.patches.forward_state import MAIN, CacheState, ForwardState
from errata.patches.history import History

_PASSAGES, _READING = "passages", "reading"


@dataclass(frozen=True)
class Passage:
    """What was computed for an edit's text.

    Attributes:
        states: (tokens, width), fp32 on the CPU.
        answer: the token with which the edit's target begins.
    """

    states: Tensor
    answer: int


@dataclass(frozen=True)
class Passages:
    """The passages of a batch's rows, those of a row in one sequence.

    Attributes:
        states: (rows, tokens, width), fp32.
        mask: (rows, tokens) bool, False at padding.
        offsets: (rows, tokens), of each token from the one with which the target begins.
        kept: what follows from them, to be computed once per prompt.
    """

    states: Tensor
    mask: Tensor
    offsets: Tensor
    kept: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Sequence[Passage]], device: torch.device) -> Passages:
        """Put the passages of rows side by side; each row has one or more."""

        def padded(parts: list[Tensor]) -> Tensor:
            return pad_sequence(parts, batch_first=True).to(device)

        offsets = [
            torch.cat([torch.arange(len(each.states)) - each.answer for each in row])
            for row in rows
        ]
        return cls(
            padded([torch.cat([each.states for each in row]) for row in rows]),
            padded([torch.ones(len(each), dtype=torch.bool) for each in offsets]),
            padded(offsets),
        )


@dataclass(frozen=True)
class Reading:
    """What one forward call reads.

    Attributes:
        rows: (r,), the rows of the batch that have passages.
        passages: theirs.
        start: the first column at which any of them reads.
        offsets: (r, width - start), of each column from its row's last prompt token; one below 0
            reads nothing.
    """

    rows: Tensor
    passages: Passages
    start: int
    offsets: Tensor

    def added(self, hidden: Tensor, more: Tensor) -> Tensor:
        """Return a tensor (batch, width, ...) with something added where it is read.

        Args:
            hidden: the tensor.
            more: (r, width - start, ...).
        """
        reads = (self.offsets >= 0)[..., None].to(more.device)
        more = more.masked_fill(~reads, 0.0)
        changed, rows = hidden.clone(), self.rows.to(hidden.device)
        part = changed[rows, self.start :]
        changed[rows, self.start :] = (part + more.to(part)).to(hidden.dtype)
        return changed


class PassageReader(ContextPatch):
    """Read passages at some modules; contexts are edits' ids here.

    Args:
        network: the weights that read.

    Attributes:
        network: see above.
        passages: by edit id; while the patch is installed they stay.
    """

    grows = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.passages: Mapping[str, Passage] = {}
        self._given: PerThread[list[tuple[str, ...]] | None] = PerThread(None)
        self._chosen: dict[tuple[int, ...], tuple[str, ...]] = {}
        self._places: dict[str, int] = {}

    @abstractmethod
    def _reading_hooks(self, lm: LM) -> list[RemovableHandle]:
        """Register the hooks that read, see `reading`."""

    @property
    def empty(self) -> bool:
        """Whether no prompt has a passage."""
        return self._given.get() is None and super().empty

    @contextmanager
    def giving(self, rows: Sequence[tuple[str, ...]]) -> Iterator[None]:
        """Within a `with` block, let each row of a batch read the passages of these ids."""
        with self._given.temporarily(list(rows)):
            yield

    @property
    def reading(self) -> Reading | None:
        """What the thread's own forward call reads; None where it is the base model's."""
        state = self._pass
        return None if state is None else state.kept.get(_READING)

    def keeps_cache(self, cache: Any, ids: Tensor, prompt: Tensor) -> bool:
        """Whether no token in the cache has read a passage."""
        known: CacheState | None = getattr(cache, self.mark, None)
        if known is None or known.decided_by != self._installation:
            return False
        return bool((known.route == MAIN).all())

    def begin(self, rows: BegunRows) -> None:
        """Note that no token that the base model has read in rows has read a passage.

        The patch is installed.
        """
        columns = slice(rows.read)
        history = History(rows.ids[:, columns], rows.mask[:, columns], rows.prompt[:, columns])
        route = torch.full((len(rows.ids), 1), MAIN)
        setattr(rows.cache, self.mark, CacheState(self._installation, history, route))

    def chosen(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[tuple[str, ...]]:
        """Return the ids of what prompts read (token ids without padding), the best last."""
        if (given := self._given.get()) is not None:
            return given
        if len(self._chosen) > MAX_CACHED:
            self._chosen = {}
        cached = self._chosen
        if new := [ids for ids in dict.fromkeys(prompts) if ids not in cached]:
            found = self._contexts([lm.questions(ids) for ids in new])
            cached.update(zip(new, found, strict=True))
        return [cached[ids] for ids in prompts]

    def finds(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[bool]:
        """Return which prompts have a passage."""
        return [bool(names) for names in self.chosen(lm, prompts)]

    def with_contexts(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the prompts, in front of which nothing is put."""
        return list(prompts)

    # installed

    def _attach(self, lm: LM) -> None:
        self._chosen = {}
        self._places = {name: place for place, name in enumerate(self.passages)}
        super()._attach(lm)

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        decide = lm.model.register_forward_pre_hook(
            lambda _, args, kwargs: self._decide(lm, self._arguments(args, kwargs)),
            prepend=True,
            with_kwargs=True,
        )
        return [decide, *self._reading_hooks(lm)]

    def _decide(self, lm: LM, arguments: Arguments) -> None:
        """Decide what a batch of prompts reads, and look up what is read in this call."""
        if (state := self._pass) is None:
            return
        if state.route is None:
            if state.ids is None:
                raise ConfigError(
                    "with inputs_embeds it is not known what is asked, so no fact can be found "
                    "for it; give input_ids."
                )
            nothing: tuple[str, ...] = ()
            found = state.in_rows(state.history.prompts, partial(self.chosen, lm), nothing)
            most = max((len(names) for names in found), default=0) or 1
            places = [[self._places[name] for name in names] for names in found]
            state.route = torch.tensor([row + [MAIN] * (most - len(row)) for row in places])
        if bool((state.route != MAIN).any()):
            state.kept[_READING] = self._found(lm, state, state.route)

    def _found(self, lm: LM, state: ForwardState, route: Tensor) -> Reading | None:
        """Return what a call reads; None where none of its columns does."""
        rows = (route != MAIN).any(-1).nonzero()[:, 0]
        seen, ends = state.seen.long().cumsum(-1), torch.tensor(state.history.ends)
        offsets = seen - seen.gather(1, ends.to(seen.device)[:, None])
        before = torch.arange(seen.shape[1], device=seen.device) < ends.to(seen.device)[:, None]
        offsets = offsets.masked_fill(before, -1)[:, -state.size[1] :][rows.to(seen.device)]
        columns = (offsets >= 0).any(0).nonzero()
        if not len(columns):
            return None
        start, notes = int(columns[0]), state.history.notes
        if _PASSAGES not in notes:
            names = list(self.passages)
            parts = [
                [self.passages[names[place]] for place in row if place != MAIN]
                for row in route[rows].tolist()
            ]
            notes[_PASSAGES] = Passages.of(parts, lm.device)
        return Reading(rows, notes[_PASSAGES], start, offsets[:, start:].to(lm.device))
