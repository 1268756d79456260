"""`AnswerStore`: the tokens of edits' answers, each stored with the context that it follows.

A context is what the model makes of the tokens before: the input or output of one module. Whether
the store is used is decided once per sequence, on the prompt's last token (see
`patches/routed.py`): a stored prompt must be within a radius of it. From there on every token looks
up its own neighbours; what those do is a subclass's to say. Of several tokens stored with one and
the same context only the latest counts, so an answer can be corrected again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from errata.lm import LM
from errata.patches.routed import MAIN, ForwardState, RoutedPatch, last_token
from errata.retrieval.key_index import KeyIndex, rounding
from errata.storage import state


class AnswerStore(RoutedPatch):
    """A store of (context, next token) beside the model. It changes final logits only, no cache.

    Args:
        lm: the base model; nothing is installed on it yet.
        width: length of a context.
        device: where contexts are kept and searched.
        radius: how far a prompt may be from a stored one for the store to be used.
        neighbours: how many stored tokens a token is compared with, at most.

    Attributes:
        prompts: the contexts that begin an answer, by number.
        contexts: the contexts that count, by number.
    """

    changes_cache = False

    def __init__(
        self, lm: LM, width: int, device: torch.device, radius: float, neighbours: int
    ) -> None:
        super().__init__()
        self.radius, self.neighbours = radius, neighbours
        self._width, self._device = width, device
        self._vocabulary = int(lm.model.get_input_embeddings().weight.shape[0])
        self._rounding = rounding(lm.model.dtype)
        self.clear()

    @property
    def empty(self) -> bool:
        """Whether nothing is stored yet."""
        return not self._numbers

    def clear(self) -> None:
        """Forget everything."""
        self.prompts = KeyIndex(self._width, self._device)
        self.contexts = KeyIndex(self._width, self._device)
        self._numbers: dict[str, list[int]] = {}
        """By edit: the numbers of its contexts."""
        self._tokens: dict[int, int] = {}
        """By number: the token that follows the context."""
        self._superseded: dict[int, dict[int, Tensor]] = {}
        """By number: the older contexts equal to it, which do not count, by theirs."""
        self._next = 0

    def add(self, edit_id: str, contexts: Tensor, tokens: Sequence[int]) -> None:
        """Store an answer.

        Args:
            edit_id: what to call it.
            contexts: (n, width), that of the prompt's last token first.
            tokens: n, the token that follows each.
        """
        numbers = list(range(self._next, self._next + len(tokens)))
        self._next += len(tokens)
        self._numbers[edit_id] = numbers
        self._tokens.update(zip(numbers, tokens, strict=True))
        self.prompts.add(numbers[:1], contexts[:1])
        for number, context in zip(numbers, contexts, strict=True):
            self._let_count(number, context)

    def drop(self, edit_id: str) -> None:
        """Forget one answer; no index is built anew.

        Raises:
            KeyError: there is none of that name.
        """
        numbers = self._numbers.pop(edit_id)
        self.prompts.remove(numbers[:1])
        for number in numbers:
            if number in self.contexts:
                self.contexts.remove([number])
            for superseded in self._superseded.values():
                superseded.pop(number, None)
            released = self._superseded.pop(number, {})
            for other in sorted(released, reverse=True):
                self._let_count(other, released[other])
            del self._tokens[number]

    def state(self) -> dict[str, Tensor]:
        """Return the contexts (n, width) and tokens (n,) of all answers, and their lengths.

        Answers are in order. For each context, the place of the one that supersedes it, or -1, is
        returned too, (n,).
        """
        numbers = [number for answer in self._numbers.values() for number in answer]
        if not numbers:
            return {}
        by_older = {
            older: (number, context)
            for number, superseded in self._superseded.items()
            for older, context in superseded.items()
        }
        places = {number: place for place, number in enumerate(numbers)}
        contexts, superseded_by = [], []
        for number in numbers:
            later, context = by_older.get(number) or (None, self.contexts.keys_of([number])[0])
            contexts.append(context)
            superseded_by.append(-1 if later is None else places[later])
        return {
            "contexts": torch.stack(contexts).cpu(),
            "tokens": torch.tensor([self._tokens[number] for number in numbers]),
            "silenced_by": torch.tensor(superseded_by),
            "lengths": torch.tensor([len(answer) for answer in self._numbers.values()]),
        }

    def load_state(self, edit_ids: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Restore the answers of these edits from `state`.

        Raises:
            KeyError, ValueError: something is missing or of the wrong shape.
        """
        self.clear()
        if not edit_ids:
            return
        contexts = state.tensor(tensors, "contexts", (None, self._width)).to(self._device)
        count = len(contexts)
        lengths = state.numbers(tensors, "lengths", len(edit_ids), 1, count)
        if sum(lengths) != count:
            raise ValueError(f"'lengths' are {sum(lengths)} together; expected {count}")
        tokens = state.numbers(tensors, "tokens", count, 0, self._vocabulary - 1)
        superseded_by = state.numbers(tensors, "silenced_by", count, -1, count - 1)
        if any(
            later >= 0 and (later <= number or superseded_by[later] >= 0)
            for number, later in enumerate(superseded_by)
        ):
            raise ValueError("'silenced_by' names one that is not later, or is silent itself")
        for edit_id, length in zip(edit_ids, lengths, strict=True):
            self._numbers[edit_id] = list(range(self._next, self._next + length))
            self._next += length
        self._tokens = dict(enumerate(tokens))
        counting = [number for number, later in enumerate(superseded_by) if later < 0]
        self.contexts.add(counting, contexts[counting])
        first = [numbers[0] for numbers in self._numbers.values()]
        self.prompts.add(first, contexts[first])
        for number, later in enumerate(superseded_by):
            if later >= 0:
                self._superseded.setdefault(later, {})[number] = contexts[number]

    def decide(self, contexts: Tensor) -> Tensor:
        """Return the nearest stored prompt or `MAIN`, (batch,), for contexts (batch, width)."""
        distances, numbers = self.prompts.nearest(contexts, within=self.radius)
        return numbers[:, 0] if distances.numel() else numbers.new_full((len(contexts),), MAIN)

    def nearest(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances and next tokens of the nearest stored contexts, nearest first.

        Args:
            contexts: (n, width).

        Returns:
            (n, neighbours) each, in float64 and int64; fewer where fewer are stored.
        """
        count = min(self.neighbours, len(self.contexts))
        distances, numbers = self.contexts.nearest(contexts, count)
        tokens = [[self._tokens[number] for number in row] for row in numbers.tolist()]
        return distances, torch.tensor(tokens, device=distances.device).view(numbers.shape)

    def _let_count(self, number: int, context: Tensor) -> None:
        """Let a context count instead of earlier ones equal to it, unless a later one does."""
        within = self._rounding * float(context.norm())
        nearest = self.contexts.nearest(context[None], 4, within=within)[1][0]
        equal = [other for other in nearest.tolist() if other >= 0]
        if equal and max(equal) > number:
            self._superseded.setdefault(max(equal), {})[number] = context
            return
        for other in equal:
            older = {other: self.contexts.keys_of([other])[0], **self._superseded.pop(other, {})}
            self._superseded.setdefault(number, {}).update(older)
            self.contexts.remove([other])
        self.contexts.add([number], context[None])

    # in a forward call

    def _choose(self, now: ForwardState, contexts: Tensor) -> bool:
        """Decide on a call's contexts (batch, width, ...); return whether any row is in scope."""
        if now.route is None and now.mask is not None:
            rows = torch.arange(now.size[0], device=contexts.device)
            last = contexts[rows, last_token(now.mask.to(contexts.device))]
            now.route = now.left_out(self.decide(last.float()))
        return now.route is not None and not bool((now.route == MAIN).all())

    @staticmethod
    def _answer_tokens(now: ForwardState) -> Tensor:
        """Return the tokens of a decided call behind which an answer in scope goes on, (batch,
        width) bool.
        """
        if now.route is None:
            raise ValueError("nothing is decided yet")
        routed = (now.route != MAIN)[:, None].expand(now.size)
        if now.mask is None:
            return routed
        columns = torch.arange(now.size[1], device=routed.device)
        return routed & (columns >= last_token(now.mask.to(routed.device))[:, None])
