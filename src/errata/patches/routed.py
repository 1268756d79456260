"""`RoutedPatch`: a patch that decides once per prompt, on the prompt's tokens alone, padding left
out.

The decision holds for the whole answer. It is kept on the sequence's key-value cache, and copied
with it; what is known of a call that runs belongs to the thread that made it. So one prompt gets
one answer: alone, in a batch, padded on either side, with a target appended, generated token by
token (greedily, by sampling or by beam search), from several threads, behind a prefix that was read
before, or as the next turn on the last turn's cache. What is decided, and what follows from it, is
the business of the patches built on this.

A cache knows what it has read (`Reading`). Tokens of a prompt that come behind it make a new
prompt, of all that was read and of them, and that is decided anew. Which tokens are the prompt's is
announced (see `encoding.prompt_tokens`); where nobody says it, several tokens behind a cache are
more of the prompt, and a single one is the answer's next. Where what the cache holds depends on the
decision, all is read again from its first token.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.encoding import announced_prompt_tokens
from errata.lm.hooks import PerThread
from errata.patches.base import Patch
from errata.patches.reading import (
    MAIN,
    READING,
    ForwardState,
    Reading,
    announced_reading,
    columns_seen,
    first_seen,
    fitted,
    for_rows,
    last_columns,
    last_token,
    new_prompt,
    prompt_mask,
    rows_of,
)
from errata.patches.turns import question_mask

__all__ = ["MAIN", "ForwardState", "RoutedModule", "RoutedPatch", "last_columns", "last_token"]


class RoutedPatch(Patch):
    """Follows each forward call of the model; `self._pass` says what is known of the one that this
    thread runs now.

    A subclass registers its own hooks in `_listen`. In them it decides when `self._pass` has a mask
    and no route yet, sets `self._pass.route`, a tensor with one row per sequence, and acts on it.
    `self._pass` is None when there is nothing to do.
    """

    reads_prompts = True
    changes_cache = True

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._passes: PerThread[ForwardState | None] = PerThread(None)
        self._standing = ""
        self._names: tuple[str, ...] = ()
        self._bind: Callable[..., inspect.BoundArguments]

    @property
    def _pass(self) -> ForwardState | None:
        return self._passes.get()

    @_pass.setter
    def _pass(self, now: ForwardState | None) -> None:
        self._passes.set(now)

    @property
    @abstractmethod
    def empty(self) -> bool:
        """Nothing is stored: the base model answers everything."""

    @abstractmethod
    def _listen(self, lm: LM) -> list[RemovableHandle]:
        """Register the hooks that decide and act."""

    def _attach(self, lm: LM) -> None:
        signature = inspect.signature(lm.model.forward)
        self._bind, self._names = signature.bind_partial, tuple(signature.parameters)
        self._standing = (
            uuid4().hex
        )  # another name each time: what was decided before counts no more
        self._handles = [
            lm.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            *self._listen(lm),
            lm.model.register_forward_hook(self._end, with_kwargs=True, always_call=True),
        ]

    def _detach(self, lm: LM) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the model's forward by name."""
        given = dict(self._bind(*args, **kwargs).arguments)
        given.update(given.pop("kwargs", {}))
        return given

    def _begin(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        self._pass = None
        if self.empty:
            return None
        given = self._given(args, kwargs)
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        tokens = given.get("inputs_embeds") if ids is None else ids
        if tokens is None:
            return None
        size = (int(tokens.shape[0]), int(tokens.shape[1]))
        held = int(cache.get_seq_length()) if cache is not None else 0
        if held:
            return self._go_on(given, ids, size, tokens.device, held)
        prompt = prompt_mask(given, size, tokens.device)
        self._pass = ForwardState(
            size, prompt, cache, None, ids, first_seen(given, size, prompt), prompt
        )
        return None

    def _go_on(
        self,
        given: dict[str, Any],
        ids: Tensor | None,
        size: tuple[int, int],
        device: torch.device,
        held: int,
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Follow a call whose cache has read something: what it holds for, or a new prompt."""
        (rows, width), cache = size, given["past_key_values"]
        read = getattr(cache, READING, None)
        if read is None:
            read = announced_reading(rows, held)
        past = held - read.more
        prompt = new_prompt(given, size, past, device)
        seen = torch.cat(
            [
                fitted(rows_of(read.seen, rows), past, True).to(device),
                columns_seen(given, size, device),
            ],
            dim=1,
        )
        before = None if read.ids is None else rows_of(read.ids, rows)[:, :past].to(device)
        whole = None if before is None or ids is None else torch.cat([before, ids], dim=1)
        new = bool(prompt.any())
        if new:  # all that was said before belongs to the prompt now
            asked = torch.cat([seen[:, :past], prompt], dim=1)
        else:
            asked = fitted(rows_of(read.prompt, rows), past + width, False).to(device)
        if (announced := announced_prompt_tokens()) is not None and (
            wide := for_rows(announced, rows)
        ) is not None:
            asked = seen & fitted(wide.to(device), past + width, False)
        mine = read.decided_by == self._standing
        if mine and not new:
            self._pass = ForwardState(
                size, None, cache, rows_of(read.route, rows), whole, seen, asked
            )
            return None
        if whole is None:
            raise ConfigError(
                "this cache was filled from embeddings, so it is not known what was asked; give token ids, or the whole "
                "prompt without past_key_values."
            )
        if mine and not self.changes_cache and bool(prompt.any(-1).all()):
            self._pass = ForwardState(size, prompt, cache, None, whole, seen, asked)
            return None
        self._pass = ForwardState(
            (rows, past + width), asked, cache, None, whole, seen, asked, again=past
        )
        return (), self._again(given, whole, seen, past, width)

    def _again(
        self, given: dict[str, Any], ids: Tensor, seen: Tensor, past: int, width: int
    ) -> dict[str, Any]:
        """The arguments of a call that reads all that the cache has read once more, and then what
        was given.
        """
        cache, mask = given["past_key_values"], given.get("attention_mask")
        if getattr(cache, "is_compileable", False) or not (
            mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)
        ):
            raise ConfigError(
                "behind what was read before stands a new prompt, and a cache of fixed size, or a mask made for it, cannot "
                "be filled anew; leave cache_implementation out, or give the whole prompt without past_key_values."
            )
        cache.reset()
        changed = {**given, "input_ids": ids, "attention_mask": seen.long()}
        if "position_ids" in self._names:
            places, chosen = (seen.long().cumsum(-1) - 1).clamp(min=0), given.get("position_ids")
            changed["position_ids"] = (
                places
                if chosen is None
                else places + (chosen[..., :1] - places[:, past : past + 1])
            )
        if given.get("cache_position") is not None:
            changed["cache_position"] = torch.arange(past + width, device=ids.device)
        if (
            labels := given.get("labels")
        ) is not None:  # nothing predicted the first column given, and nothing must now
            changed["labels"] = F.pad(labels[:, 1:], (past + 1, 0), value=-100)
        elif "logits_to_keep" in self._names:
            keep = given.get("logits_to_keep", 0)
            kept = (
                torch.where(keep < 0, keep, keep + past)
                if isinstance(keep, Tensor)
                else min(keep or width, width)
            )
            changed["logits_to_keep"] = kept
        return changed

    def _end(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        now, self._pass = self._pass, None
        if now is None or output is None:  # nothing to do, or the forward raised
            return None
        if now.route is not None:
            parts = (
                output if isinstance(output, tuple) else [getattr(output, "past_key_values", None)]
            )
            for cache in (now.cache, *parts):
                if hasattr(cache, "get_seq_length"):
                    more = int(cache.get_seq_length()) - now.seen.shape[1]
                    setattr(
                        cache,
                        READING,
                        Reading(self._standing, now.ids, now.seen, now.prompt, now.route, more),
                    )
        return last_columns(output, now.size[1] - now.again, now.size[1]) if now.again else None


class RoutedModule(RoutedPatch):
    """A routed patch on one linear module: its input decides, its output is answered otherwise.

    Args:
        path: the module's full dotted name, see `Architecture.value_path`.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @abstractmethod
    def _decide(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """The route, (batch, ...), from keys (batch, width, d_in), values (batch, width, d_out),
        the prompt's mask.
        """

    @abstractmethod
    def _answer(self, keys: Tensor, output: Tensor, now: ForwardState) -> Tensor | None:
        """What the module says instead of `output` (as the family shapes it), given `now.route`;
        None: the same.
        """

    def _listen(self, lm: LM) -> list[RemovableHandle]:
        def speak(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            return self._forward_hook(lm, args[0], output)

        return [lm.model.get_submodule(self.path).register_forward_hook(speak)]

    def _forward_hook(self, lm: LM, keys: Tensor, output: Tensor) -> Tensor | None:
        now = self._pass
        if now is None:
            return None
        if now.route is None and now.mask is not None:
            rows = (*now.size, -1)
            mask = now.mask if now.ids is None else question_mask(lm, now.ids, now.mask)
            now.route = self._decide(keys.reshape(rows), output.reshape(rows), mask.to(keys.device))
        return None if now.route is None else self._answer(keys, output, now)
