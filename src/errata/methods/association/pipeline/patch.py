"""`Pipeline`: two patches that share the rows of each batch, by what the first one finds.

Whose a row is, is decided once per prompt (see `patches/routed.py`): the first patch is asked what
it finds for the prompt on the base model; where it finds nothing, the row is the second's, as if
the first were not there. Both are installed at once and run in one forward call on one cache, and
each leaves the other's rows as they are (`Patch.asked`).

They are nested. Innermost is what replaces modules or weights, or puts keys and values into the
cache; outermost is what makes the prompts longer: the one inside is told of the prompts as they
have become.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.encoding import announced_prompt_ids, announced_prompt_tokens, prompt_tokens
from errata.lm.hooks import PerThread
from errata.patches.base import Arguments, Patch, Rows, idle
from errata.patches.context import ContextPatch
from errata.patches.forward_state import CACHE_STATE, ForwardState
from errata.patches.routed import RoutedPatch

ROWS = "rows"
"""What is kept of a call: the rows that the first patch answers."""


class Pipeline(RoutedPatch):
    """A patch in front of another; a route is (batch,) bool, True where the first one answers.

    Args:
        first: decides for each prompt whether it answers.
        then: answers the other prompts.

    Raises:
        ConfigError: the first does not decide for each prompt, or the second cannot leave rows of
            a batch to it.
    """

    def __init__(self, first: Patch, then: Patch) -> None:
        super().__init__()
        if not isinstance(first, RoutedPatch):
            raise ConfigError(
                "first decides nothing for a prompt: it changes every answer, so nothing would be "
                "left to the method behind it; take one with a router, e.g. rag or grace."
            )
        if not then.shares_rows:
            raise ConfigError(
                "then changes every prompt of a batch and cannot leave some to another method; "
                "take one that can, e.g. lora or wise."
            )
        self.first, self.then = first, then
        parts = sorted((then, first), key=_place)  # inside first
        self._inside, self._outside = parts
        self._asking = PerThread(False)
        self._announced: PerThread[contextlib.ExitStack | None] = PerThread(None)

    @property
    def empty(self) -> bool:
        """Whether neither has anything stored, as far as that is known."""
        return self.first.empty and getattr(self.then, "empty", False)

    def finds(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[bool]:
        """Return which prompts the first patch answers."""
        with self._asking.temporarily(True):
            return self.first.finds(lm, prompts)

    # installed

    def _attach(self, lm: LM) -> None:
        for part in (self.first, self.then):
            part.asked = partial(self._rows_of, part)
            if isinstance(part, RoutedPatch):
                part.mark = f"{CACHE_STATE}_{'first' if part is self.first else 'then'}"
        self._inside.install(lm)
        between = [
            lm.model.register_forward_pre_hook(
                partial(self._announce, lm), prepend=True, with_kwargs=True
            ),
            lm.model.register_forward_hook(self._announce_no_more, always_call=True),
        ]
        self._outside.install(lm)
        super()._attach(lm)
        self._handles += between

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        return []

    def _detach(self, lm: LM) -> None:
        super()._detach(lm)
        for part in (self._outside, self._inside):
            part.remove()
            part.asked = None
            if isinstance(part, RoutedPatch):
                part.mark = CACHE_STATE

    def _rows_of(self, part: Patch) -> Rows:
        """Return the rows of this thread's call that are a part's.

        When the first one is asked what it finds, all are its own.
        """
        is_first = part is self.first
        if self._asking.get():
            return is_first
        state = self._pass
        if state is None or state.route is None:
            return True
        if ROWS not in state.kept:
            some = bool(state.route.any())
            state.kept[ROWS] = some if some == bool(state.route.all()) else state.route
        rows: Rows = state.kept[ROWS]
        if is_first:
            return rows
        return not rows if isinstance(rows, bool) else ~rows

    def _before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[()], Arguments] | None:
        if self._asking.get():  # in the first patch's own call
            return None
        changed = super()._before_forward(model, args, kwargs)
        state = self._pass
        if state is not None and state.route is None and self._lm is not None:
            state.route = self._decide(self._lm, state)
        return changed

    def _decide(self, lm: LM, state: ForwardState) -> Tensor:
        if state.ids is None:
            raise ConfigError(
                "with inputs_embeds it is not known what is asked, so no memory can be chosen for "
                "it; give input_ids."
            )
        found = self.finds(lm, state.history.prompts)
        return torch.tensor(found, device=state.ids.device)

    def _after_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any
    ) -> Any:
        return None if self._asking.get() else super()._after_forward(model, args, kwargs, output)

    def _announce(self, lm: LM, _: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        """Announce prompts to the patch inside with the columns that the one outside has put in."""
        if idle() or self._asking.get():
            return
        wider = self._outside.wider if isinstance(self._outside, RoutedPatch) else 0
        mask, ids = announced_prompt_tokens(), announced_prompt_ids()
        if mask is None or not wider:
            return
        ids = None if ids is None else F.pad(ids, (wider, 0), value=lm.pad_id)
        stack = contextlib.ExitStack()
        stack.enter_context(prompt_tokens(F.pad(mask, (wider, 0)), ids))
        self._announced.set(stack)

    def _announce_no_more(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        stack = self._announced.get()
        if stack is not None and not (idle() or self._asking.get()):
            self._announced.set(None)
            stack.close()


def _place(part: Patch) -> int:
    """Return how far outside a patch is to be: what fills the cache is inside what reads it."""
    if not isinstance(part, RoutedPatch):
        return 0
    if part.grows:
        return 3
    return 1 if isinstance(part, ContextPatch) else 2
