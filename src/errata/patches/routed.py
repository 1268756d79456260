"""`RoutedPatch`: a patch that decides once per prompt, on the prompt's tokens alone.

Padding is left out, and the decision holds for the whole answer. It is kept on the sequence's
key-value cache and copied with it; the state of a running call belongs to the thread that made it.
So one prompt gets one answer: alone, in a batch, padded on either side, with a target appended,
generated token by token (greedily, by sampling or by beam search), from several threads, behind a
prefix that was read before, or as the next turn on the last turn's cache. What is decided, and what
follows from it, is up to the subclasses.

A cache's tokens are known (`CacheState`). Tokens of a prompt that come behind them make a new
prompt, of all those tokens, which is decided anew. Which tokens are the prompt's is announced (see
`lm.encoding.prompt_tokens`); where it is not, several tokens behind a cache are more of the prompt,
and a single one is the answer's next. Where the cache's contents depend on the decision, all tokens
are read again from the first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.cache import cache_in
from errata.lm.encoding import Row, announced_prompt_tokens, prompt_tokens
from errata.lm.hooks import PerThread
from errata.patches.base import Arguments, ForwardPatch, idle
from errata.patches.forward_state import (
    CACHE_STATE,
    MAIN,
    CacheState,
    ForwardState,
    announced_cache_state,
    caches_in,
    can_grow,
    first_not_padding,
    last_columns,
    new_prompt_mask,
    not_padding,
    prompt_mask,
)
from errata.patches.history import History, last_token, repeated, resized
from errata.patches.question import question_mask

__all__ = ["MAIN", "ForwardState", "RoutedModule", "RoutedPatch", "last_columns", "last_token"]


class RoutedPatch(ForwardPatch):
    """Follow each forward call of the model, and keep its state in `self._pass`.

    A subclass registers its own hooks in `_register_hooks`. When `self._pass` has a mask and no
    route yet, they decide and set `self._pass.route`, a tensor with one row per sequence; then they
    act on it. `self._pass` is that of the thread's own call, and None when there is nothing to do.

    Attributes:
        mark: the attribute of a key-value cache that holds what was decided.
    """

    reads_prompts = True
    changes_cache = True
    shares_rows = True
    grows: ClassVar[bool] = False
    """Whether it gives the model more columns than the caller gave."""
    nothing: ClassVar[int | bool] = MAIN
    """What fills the route of a row that the base model answers."""

    def __init__(self) -> None:
        super().__init__()
        self.mark = CACHE_STATE
        self._passes: PerThread[ForwardState | None] = PerThread(None)
        self._installation = ""

    @property
    def _pass(self) -> ForwardState | None:
        return None if idle() else self._passes.get()

    @_pass.setter
    def _pass(self, state: ForwardState | None) -> None:
        if not idle():
            self._passes.set(state)

    @property
    @abstractmethod
    def empty(self) -> bool:
        """Whether nothing is stored, so that the base model answers everything."""

    @property
    def wider(self) -> int:
        """The columns that the running call has beside those given, if the patch `grows`."""
        return 0

    def finds(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[bool]:
        """Return for which prompts there is something stored, so that it changes the answer.

        Args:
            lm: the model that the patch is on.
            prompts: token ids without padding.
        """
        if self.empty or not prompts:
            return [False] * len(prompts)
        batch = lm.batch([Row(ids, len(ids)) for ids in prompts])
        with torch.no_grad(), prompt_tokens(batch.prompt_mask, batch.input_ids):
            cache = cache_in(lm.run(batch, keep=1, use_cache=True))
        known: CacheState = getattr(cache, self.mark)
        return self.answered(known.route).tolist()

    def answered(self, route: Tensor) -> Tensor:
        """Return the rows of a route that something stored answers, (batch,) bool."""
        return route != MAIN

    @abstractmethod
    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        """Register the hooks that decide and act."""

    def _attach(self, lm: LM) -> None:
        self._installation = uuid4().hex  # decisions of earlier installations are void
        super()._attach(lm)

    def _before_forward(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[()], Arguments] | None:
        self._pass = None
        rows = self.rows()
        if self.empty or not (rows if isinstance(rows, bool) else bool(rows.any())):
            return None
        changed = self._follow(self._arguments(args, kwargs))
        if (state := self._passes.get()) is not None:
            state.rows = rows
        return changed

    def _follow(self, arguments: Arguments) -> tuple[tuple[()], Arguments] | None:
        """Make the state of a call; return other arguments where the cache is read again."""
        ids, cache = arguments.get("input_ids"), cache_in(arguments)
        tokens = arguments.get("inputs_embeds") if ids is None else ids
        if tokens is None:
            return None
        size = (int(tokens.shape[0]), int(tokens.shape[1]))
        columns = int(cache.get_seq_length()) if cache is not None else 0
        if columns:
            return self._continue(arguments, ids, size, tokens.device, columns)
        prompt = prompt_mask(arguments, size, tokens.device)
        seen = first_not_padding(arguments, size, prompt)
        self._pass = ForwardState(size, prompt, cache, None, History(ids, seen, prompt))
        return None

    def _continue(
        self,
        arguments: Arguments,
        ids: Tensor | None,
        size: tuple[int, int],
        device: torch.device,
        columns: int,
    ) -> tuple[tuple[()], Arguments] | None:
        """Follow a call whose cache is filled: more of the answer, or a new prompt."""
        (rows, width), cache = size, cache_in(arguments)
        known: CacheState | None = getattr(cache, self.mark, None)
        if known is None:
            known = announced_cache_state(rows, columns)
        past = columns - known.extra_columns
        history, route = known.history.resized(rows, past), repeated(known.route, rows)
        new_mask = new_prompt_mask(arguments, size, past, device)
        is_ours = known.decided_by == self._installation
        if is_ours and new_mask is None:
            history = history.behind(ids, not_padding(arguments, size, device))
            self._pass = ForwardState(size, None, cache, route, history)
            return None
        seen = torch.cat([history.seen.to(device), not_padding(arguments, size, device)], dim=1)
        if history.ids is None or ids is None:
            raise ConfigError(
                "this cache was filled from embeddings, so it is not known what was asked; give "
                "token ids, or the whole prompt without a cache."
            )
        all_ids = torch.cat([history.ids.to(device), ids], dim=1)
        if (announced := announced_prompt_tokens()) is not None:
            prompt = seen & resized(repeated(announced, rows).to(device), past + width, False)
        elif new_mask is not None:  # all earlier tokens, answers too, belong to the new prompt
            prompt = torch.cat([seen[:, :past], new_mask], dim=1)
        else:
            prompt = resized(history.prompt, past + width, False).to(device)
        history = History(all_ids, seen, prompt)
        all_new = new_mask is not None and bool(new_mask.any(-1).all())
        if is_ours and all_new and self.keeps_cache(cache, all_ids, prompt):
            self._pass = ForwardState(size, new_mask, cache, None, history)
            return None
        size = (rows, past + width)
        self._pass = ForwardState(size, prompt, cache, None, history, reread=past)
        return (), self._reread(arguments, all_ids, seen, past, width)

    def _reread(
        self, arguments: Arguments, ids: Tensor, seen: Tensor, past: int, width: int
    ) -> Arguments:
        """Return the arguments of a call that reads the cache's tokens again, then those given."""
        cache = cache_in(arguments)
        if not can_grow(arguments, cache):
            raise ConfigError(
                "behind what was read before stands a new prompt, and a cache of fixed size, or a "
                "mask made for it, cannot be filled anew; leave cache_implementation out, or give "
                "the whole prompt without a cache."
            )
        cache.reset()
        changed = {**arguments, "input_ids": ids, "attention_mask": seen.long()}
        if "position_ids" in self._argument_names:
            positions = (seen.long().cumsum(-1) - 1).clamp(min=0)
            given_positions = arguments.get("position_ids")
            if given_positions is not None:
                positions = positions + (given_positions[..., :1] - positions[:, past : past + 1])
            changed["position_ids"] = positions
        if arguments.get("cache_position") is not None:
            changed["cache_position"] = torch.arange(past + width, device=ids.device)
        labels = arguments.get("labels")
        if labels is not None:  # nothing predicts the first column given
            changed["labels"] = F.pad(labels[:, 1:], (past + 1, 0), value=-100)
        elif "logits_to_keep" in self._argument_names:
            keep = arguments.get("logits_to_keep", 0)
            if isinstance(keep, Tensor):
                changed["logits_to_keep"] = torch.where(keep < 0, keep, keep + past)
            else:
                changed["logits_to_keep"] = min(keep or width, width)
        return changed

    def _after_forward(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any
    ) -> Any:
        state, self._pass = self._pass, None
        if state is None or output is None:  # nothing to do, or the forward raised
            return None
        if state.route is not None:
            for cache in caches_in(output, state.cache):
                cache_state = CacheState(
                    self._installation,
                    state.history,
                    state.route,
                    int(cache.get_seq_length()) - state.history.size[1],
                )
                setattr(cache, self.mark, cache_state)
        width = state.size[1]
        return last_columns(output, width - state.reread, width) if state.reread else None


class RoutedModule(RoutedPatch):
    """A routed patch on one linear module, which decides on its input and changes its output.

    Args:
        path: the module's full dotted name, see `Architecture.value_path`.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @abstractmethod
    def _decide(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Decide the route, (batch, ...).

        Args:
            keys: (batch, width, d_in), the module's input.
            values: (batch, width, d_out), its output.
            mask: (batch, width) bool, True at the prompt's last question.
        """

    @abstractmethod
    def _answer(self, keys: Tensor, output: Tensor, state: ForwardState) -> Tensor | None:
        """Return the module's changed output, given `state.route`; None to leave it as it is.

        `keys` and `output` have the shapes that the model's family gives them.
        """

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            return self._forward_hook(lm, args[0], output)

        return [lm.model.get_submodule(self.path).register_forward_hook(hook)]

    def _forward_hook(self, lm: LM, keys: Tensor, output: Tensor) -> Tensor | None:
        state = self._pass
        if state is None:
            return None
        if state.route is None and state.mask is not None:
            shape = (*state.size, -1)
            mask = state.mask
            if state.ids is not None:
                mask = question_mask(lm, state.ids, mask)
            mask = mask.to(keys.device)
            route = self._decide(keys.reshape(shape), output.reshape(shape), mask)
            state.route = state.left_out(route, self.nothing)
        return None if state.route is None else self._answer(keys, output, state)
