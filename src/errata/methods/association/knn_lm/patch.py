"""`Mixture`: stored contexts with the token that followed each; their vote is mixed into the
model's own next-token choice.

A context is what one linear module reads at a token. Whether the store is asked at all is decided
once per sequence, on the prompt's last token (see `routed.py`): a stored prompt must be within a
radius of it. From there on every token looks up its own neighbours. Of several stored tokens behind
one and the same context only the latest speaks, so a question can be corrected again. The mixing is
done on the model's final logits, behind whatever a family does to what its head says.

Reference: kNN-LM, arXiv 1911.00172, equations 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.lm import LM
from errata.patches.routed import MAIN, RoutedPatch, last_token
from errata.retrieval.key_index import KeyIndex, rounding
from errata.storage import state


class Mixture(RoutedPatch):
    """A store of (context, next token) beside the model. It mixes the last logits, so no cache
    depends on it.

    Args:
        lm: the base model; nothing is installed on it yet.
        path: the module whose input is the context, see `Architecture.value_path`.
        radius: how far a prompt may be from a stored one for the store to be asked.
        temperature: tau, a squared distance: a neighbour at distance d weighs exp(-d^2 / tau).
        share: lambda, the store's part in the mixture.
        neighbours: k, how many vote.
    """

    changes_cache = False

    def __init__(
        self, lm: LM, path: str, radius: float, temperature: float, share: float, neighbours: int
    ) -> None:
        super().__init__()
        self.path = path
        self.radius, self.temperature, self.share, self.neighbours = (
            radius,
            temperature,
            share,
            neighbours,
        )
        module = lm.model.get_submodule(path)
        self._width, self._vocabulary = (
            lm.architecture.d_in,
            int(lm.model.get_input_embeddings().weight.shape[0]),
        )
        self._device = module.weight.device
        self._rounding = rounding(lm.model.dtype)
        self.clear()

    @property
    def empty(self) -> bool:
        """Nothing is stored yet."""
        return not self._numbers

    def clear(self) -> None:
        """Forget everything."""
        self.prompts, self.contexts = (
            KeyIndex(self._width, self._device),
            KeyIndex(self._width, self._device),
        )
        self._numbers: dict[str, list[int]] = {}
        self._tokens: dict[int, int] = {}
        self._silent: dict[
            int, dict[int, Tensor]
        ] = {}  # by number: the older contexts that it silences
        self._next = 0

    def add(self, name: str, contexts: Tensor, tokens: Sequence[int]) -> None:
        """Store an answer: contexts (n, width), the prompt's last token first, and the tokens that
        follow them.
        """
        numbers = list(range(self._next, self._next + len(tokens)))
        self._next += len(tokens)
        self._numbers[name] = numbers
        self._tokens.update(zip(numbers, tokens, strict=True))
        self.prompts.add(numbers[:1], contexts[:1])
        for number, context in zip(numbers, contexts, strict=True):
            self._speak(number, context)

    def drop(self, name: str) -> None:
        """Forget one answer; no index is built anew.

        Raises:
            KeyError: there is none of that name.
        """
        numbers = self._numbers.pop(name)
        self.prompts.remove(numbers[:1])
        for number in numbers:
            if number in self.contexts:
                self.contexts.remove([number])
            for older in self._silent.values():
                older.pop(number, None)
            for other, context in sorted(
                self._silent.pop(number, {}).items(), key=itemgetter(0), reverse=True
            ):
                self._speak(other, context)
            del self._tokens[number]

    def state(self) -> dict[str, Tensor]:
        """Of all answers in their order: contexts (n, width), tokens (n,), who silences whom (n,),
        and the lengths.
        """
        numbers = [number for held in self._numbers.values() for number in held]
        if not numbers:
            return {}
        silent = {
            older: (number, context)
            for number, held in self._silent.items()
            for older, context in held.items()
        }
        contexts = [silent[n][1] if n in silent else self.contexts.keys_of([n])[0] for n in numbers]
        place = {number: at for at, number in enumerate(numbers)}
        return {
            "contexts": torch.stack(contexts).cpu(),
            "tokens": torch.tensor([self._tokens[number] for number in numbers]),
            "silenced_by": torch.tensor(
                [place[silent[number][0]] if number in silent else -1 for number in numbers]
            ),
            "lengths": torch.tensor([len(held) for held in self._numbers.values()]),
        }

    def load_state(self, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Hold what `state` gave, and nothing else.

        Raises:
            KeyError, ValueError: something is missing or of the wrong shape.
        """
        self.clear()
        if not names:
            return
        contexts = state.tensor(tensors, "contexts", (None, self._width)).to(self._device)
        count = len(contexts)
        lengths = state.numbers(tensors, "lengths", len(names), 1, count)
        if sum(lengths) != count:
            raise ValueError(f"'lengths' are {sum(lengths)} together; expected {count}")
        tokens = state.numbers(tensors, "tokens", count, 0, self._vocabulary - 1)
        owners = state.numbers(tensors, "silenced_by", count, -1, count - 1)
        if any(
            owner >= 0 and (owner <= number or owners[owner] >= 0)
            for number, owner in enumerate(owners)
        ):
            raise ValueError("'silenced_by' names one that is not later, or is silent itself")
        for name, length in zip(names, lengths, strict=True):
            self._numbers[name] = list(range(self._next, self._next + length))
            self._next += length
        self._tokens = dict(enumerate(tokens))
        speaking = [number for number, owner in enumerate(owners) if owner < 0]
        self.contexts.add(speaking, contexts[speaking])
        first = [numbers[0] for numbers in self._numbers.values()]
        self.prompts.add(first, contexts[first])
        for number, owner in enumerate(owners):
            if owner >= 0:
                self._silent.setdefault(owner, {})[number] = contexts[number]

    def _speak(self, number: int, context: Tensor) -> None:
        """Let a context vote, unless a later one is the same; earlier ones that are the same fall
        silent.
        """
        same = self.contexts.nearest(
            context[None], 4, within=self._rounding * float(context.norm())
        )[1][0]
        others = [other for other in same.tolist() if other >= 0]
        if others and max(others) > number:
            self._silent.setdefault(max(others), {})[number] = context
            return
        for other in others:
            held = {other: self.contexts.keys_of([other])[0], **self._silent.pop(other, {})}
            self._silent.setdefault(number, {}).update(held)
            self.contexts.remove([other])
        self.contexts.add([number], context[None])

    def vote(self, contexts: Tensor, vocabulary: int) -> Tensor:
        """log p_kNN (n, vocabulary) in fp32, of contexts (n, width): -inf for tokens that no
        neighbour has.
        """
        distances, numbers = self.contexts.nearest(
            contexts, min(self.neighbours, len(self.contexts))
        )
        weights = torch.softmax(-distances.square() / self.temperature, dim=-1).float()
        tokens = torch.tensor(
            [[self._tokens[n] for n in row] for row in numbers.tolist()], device=weights.device
        )
        votes = weights.new_zeros(len(contexts), vocabulary).scatter_add_(-1, tokens, weights)
        return votes.log()

    def decide(self, contexts: Tensor) -> Tensor:
        """Contexts (batch, width) of prompts -> (batch,): the nearest stored prompt's number, or
        `MAIN`.
        """
        distances, numbers = self.prompts.nearest(contexts, within=self.radius)
        return numbers[:, 0] if distances.numel() else numbers.new_full((len(contexts),), MAIN)

    # installed

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        return [
            lm.model.get_submodule(self.path).register_forward_pre_hook(self._watch),
            lm.model.register_forward_hook(self._mix, with_kwargs=True),
        ]

    def _watch(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        now = self._pass
        if now is None:
            return
        contexts = args[0].reshape(*now.size, -1)
        if now.route is None and now.mask is not None:
            rows = torch.arange(now.size[0], device=contexts.device)
            now.route = self.decide(
                contexts[rows, last_token(now.mask.to(contexts.device))].float()
            )
        if now.route is not None and not bool((now.route == MAIN).all()):
            now.kept["contexts"] = contexts

    def _mix(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        now = self._pass
        if now is None or now.route is None or (contexts := now.kept.get("contexts")) is None:
            return None
        given = self._arguments(args, kwargs)
        spoken = (now.route != MAIN)[:, None].expand(now.size)
        if now.mask is not None:  # the answer begins at the prompt's last token
            columns = torch.arange(now.size[1], device=spoken.device)
            spoken = spoken & (columns >= last_token(now.mask.to(spoken.device))[:, None])
        kept = given.get("logits_to_keep", 0)
        kept = slice(-kept or None, None) if isinstance(kept, int) else kept
        labels = given.get("labels")
        at = 1 if isinstance(output, tuple) and labels is not None else 0
        logits = output[at] if isinstance(output, tuple) else output.logits
        places = spoken[:, kept].to(logits.device)
        if not bool(places.any()):
            return None
        mixed = logits.clone()
        mixed[places] = self.mixed(logits[places], contexts[:, kept].to(logits.device)[places])
        loss = None if labels is None else self._loss(model, mixed, labels, given)
        if isinstance(output, tuple):
            return (*((loss,) if at else ()), mixed, *output[at + 1 :])
        output.logits = mixed
        if loss is not None:
            output.loss = loss
        return output

    def mixed(self, logits: Tensor, contexts: Tensor) -> Tensor:
        """log(lambda p_kNN + (1 - lambda) p_LM), (n, vocabulary), of logits (n, vocabulary) and
        contexts (n, width).
        """
        own = logits.float().log_softmax(-1)
        votes = self.vote(contexts.float(), logits.shape[-1]).to(own.device)
        stored = math.log(self.share) if self.share else -math.inf
        rest = math.log(1 - self.share) if self.share < 1 else -math.inf
        return torch.logaddexp(votes + stored, own + rest).to(logits.dtype)

    @staticmethod
    def _loss(model: Any, logits: Tensor, labels: Tensor, given: dict[str, Any]) -> Tensor:
        """What the family makes of logits and labels."""
        more = {name: given[name] for name in ("num_items_in_batch",) if name in given}
        loss: Tensor = model.loss_function(
            logits=logits, labels=labels, vocab_size=logits.shape[-1], **more
        )
        return loss
