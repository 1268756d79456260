"""`Mixture`: stored contexts, each with the token that followed it, vote for the next token.

A context is the input of one linear module at a token. Whether the store is used is decided once
per sequence, on the prompt's last token (see `patches/routed.py`): a stored prompt must be within a
radius of it. From there on every token looks up its own neighbours, and their vote is mixed into
the model's final logits, behind whatever a family does to the head's output. Of several tokens
stored with one and the same context only the latest votes, so an answer can be corrected again.

Reference: kNN-LM, arXiv 1911.00172, equations 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.lm import LM
from errata.patches.routed import MAIN, RoutedPatch, last_token
from errata.retrieval.key_index import KeyIndex, rounding
from errata.storage import state


class Mixture(RoutedPatch):
    """A store of (context, next token) beside the model. It changes final logits only, no cache.

    Args:
        lm: the base model; nothing is installed on it yet.
        path: the module whose input is the context, see `Architecture.value_path`.
        radius: how far a prompt may be from a stored one for the store to be used.
        temperature: tau, a squared distance: a neighbour at distance d weighs exp(-d^2 / tau).
        share: lambda, the store's part in the mixture.
        neighbours: k, how many vote.

    Attributes:
        prompts: the contexts that begin an answer, by number.
        contexts: the contexts that vote, by number.
    """

    changes_cache = False

    def __init__(
        self, lm: LM, path: str, radius: float, temperature: float, share: float, neighbours: int
    ) -> None:
        super().__init__()
        self.path = path
        self.radius, self.temperature = radius, temperature
        self.share, self.neighbours = share, neighbours
        self._width = lm.architecture.d_in
        self._vocabulary = int(lm.model.get_input_embeddings().weight.shape[0])
        self._device = lm.model.get_submodule(path).weight.device
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
        """By number: the older contexts equal to it, which do not vote, by theirs."""
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
            self._let_vote(number, context)

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
                self._let_vote(other, released[other])
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
        voting = [number for number, later in enumerate(superseded_by) if later < 0]
        self.contexts.add(voting, contexts[voting])
        first = [numbers[0] for numbers in self._numbers.values()]
        self.prompts.add(first, contexts[first])
        for number, later in enumerate(superseded_by):
            if later >= 0:
                self._superseded.setdefault(later, {})[number] = contexts[number]

    def decide(self, contexts: Tensor) -> Tensor:
        """Return the nearest stored prompt or `MAIN`, (batch,), for contexts (batch, width)."""
        distances, numbers = self.prompts.nearest(contexts, within=self.radius)
        return numbers[:, 0] if distances.numel() else numbers.new_full((len(contexts),), MAIN)

    def vote(self, contexts: Tensor, vocabulary: int) -> Tensor:
        """Return log p_kNN (n, vocabulary) in fp32 at contexts (n, width).

        It is -inf for tokens that no neighbour has.
        """
        count = min(self.neighbours, len(self.contexts))
        distances, numbers = self.contexts.nearest(contexts, count)
        weights = torch.softmax(-distances.square() / self.temperature, dim=-1).float()
        tokens = torch.tensor(
            [[self._tokens[n] for n in row] for row in numbers.tolist()], device=weights.device
        )
        votes = weights.new_zeros(len(contexts), vocabulary).scatter_add_(-1, tokens, weights)
        return votes.log()

    def mix(self, logits: Tensor, contexts: Tensor) -> Tensor:
        """Return log(lambda p_kNN + (1 - lambda) p_LM), (n, vocabulary).

        Logits are (n, vocabulary), contexts (n, width).
        """
        own = logits.float().log_softmax(-1)
        votes = self.vote(contexts.float(), logits.shape[-1]).to(own.device)
        stored = math.log(self.share) if self.share else -math.inf
        rest = math.log(1 - self.share) if self.share < 1 else -math.inf
        return torch.logaddexp(votes + stored, own + rest).to(logits.dtype)

    def _let_vote(self, number: int, context: Tensor) -> None:
        """Let a context vote instead of earlier ones equal to it, unless a later one does."""
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

    # installed

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        return [
            lm.model.get_submodule(self.path).register_forward_pre_hook(self._keep_contexts),
            lm.model.register_forward_hook(self._mix_logits, with_kwargs=True),
        ]

    def _keep_contexts(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Decide on the contexts that the module reads, and keep them for the logits."""
        now = self._pass
        if now is None:
            return
        contexts = args[0].reshape(*now.size, -1)
        if now.route is None and now.mask is not None:
            rows = torch.arange(now.size[0], device=contexts.device)
            last = contexts[rows, last_token(now.mask.to(contexts.device))]
            now.route = self.decide(last.float())
        if now.route is not None and not bool((now.route == MAIN).all()):
            now.kept["contexts"] = contexts

    def _mix_logits(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Return the model's output with mixed logits, and the loss that follows from them."""
        now = self._pass
        if now is None or now.route is None or (contexts := now.kept.get("contexts")) is None:
            return None
        given = self._arguments(args, kwargs)
        routed = (now.route != MAIN)[:, None].expand(now.size)
        if now.mask is not None:  # the answer begins at the prompt's last token
            columns = torch.arange(now.size[1], device=routed.device)
            routed = routed & (columns >= last_token(now.mask.to(routed.device))[:, None])
        kept = given.get("logits_to_keep", 0)
        kept = slice(-kept or None, None) if isinstance(kept, int) else kept
        labels = given.get("labels")
        at = 1 if isinstance(output, tuple) and labels is not None else 0
        logits = output[at] if isinstance(output, tuple) else output.logits
        tokens = routed[:, kept].to(logits.device)
        if not bool(tokens.any()):
            return None
        mixed = logits.clone()
        mixed[tokens] = self.mix(logits[tokens], contexts[:, kept].to(logits.device)[tokens])
        loss = None if labels is None else self._loss(model, mixed, labels, given)
        if isinstance(output, tuple):
            return (*((loss,) if at else ()), mixed, *output[at + 1 :])
        output.logits = mixed
        if loss is not None:
            output.loss = loss
        return output

    @staticmethod
    def _loss(model: Any, logits: Tensor, labels: Tensor, given: dict[str, Any]) -> Tensor:
        """Return the loss as the model's family defines it."""
        options = {name: given[name] for name in ("num_items_in_batch",) if name in given}
        loss: Tensor = model.loss_function(
            logits=logits, labels=labels, vocab_size=logits.shape[-1], **options
        )
        return loss
