"""`AnswerPrefixes` finds the tokens with which a model begins its answer whatever is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from errata.lm.body_reader import Prefill
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.leaf import Prefix

GENERIC = 0.5
"""A prediction is generic if its median overlap with those for the reference prompts is at least
this: it says nothing about the prompt.
"""
MAX_PREFIX_LENGTH = 8
"""Tokens; a model whose predictions are still generic by then is compared at the first token."""
PREFIXES_AT_ONCE = 8
"""Answer prefixes that are run behind the reference prompts together, at most."""
PROBABILITIES_AT_ONCE = 2**24
"""Probabilities that are in memory together, at most: 64 MB."""


class AnswerPrefixes:
    """Finds answer prefixes. The base model must carry no patch.

    Args:
        base: the base model's head.
    """

    def __init__(self, base: BaseHead) -> None:
        self.base = base
        self._reference_cache: dict[tuple[Prefix, tuple[str, ...]], Tensor] = {}
        self._prefill: tuple[tuple[str, ...], Prefill] | None = None

    @torch.no_grad()
    def find(
        self, prompts: Sequence[Sequence[int]], read: Prefill, reference_prompts: tuple[str, ...]
    ) -> list[tuple[Prefix, Tensor]]:
        """Find the tokens with which the model begins its answer whatever the prompt asks.

        As long as the next-token prediction for a prompt is generic (see `GENERIC`), its most
        likely token is appended. If it still is after `MAX_PREFIX_LENGTH` tokens, at the end token
        or at the end of the context, the prefix is empty.

        Args:
            prompts: as tokens.
            read: the same, read by the base model; it is used up.
            reference_prompts: see `RouterCalibration`.

        Returns:
            For each prompt the prefix, and the head's input (hidden,) at the end of both.
        """
        keys = read.states
        prefixes: list[list[int]] = [[] for _ in prompts]
        results: dict[int, tuple[Prefix, Tensor]] = {}
        pending = list(range(len(prompts)))
        for depth in range(MAX_PREFIX_LENGTH + 1):
            log_probs = self.base.log_probs(read.states)
            informative = self._informative(
                [tuple(prefixes[row]) for row in pending], log_probs, reference_prompts
            )
            tokens, going_on = log_probs.argmax(-1).tolist(), []
            for place, row in enumerate(pending):
                if informative[place]:
                    results[row] = tuple(prefixes[row]), read.states[place]
                elif depth < MAX_PREFIX_LENGTH and tokens[place] not in self.base.lm.end_ids:
                    prefixes[row].append(tokens[place])
                    if len(prompts[row]) + depth + 1 < (self.base.lm.context_length or math.inf):
                        going_on.append(place)
            if not going_on:
                break
            read.select(going_on)
            next_tokens = torch.tensor([tokens[place] for place in going_on])
            self.base.extend(read, next_tokens.to(read.mask.device))
            pending = [pending[place] for place in going_on]
        return [results.get(row, ((), keys[row])) for row in range(len(prompts))]

    def _informative(
        self, prefixes: Sequence[Prefix], log_probs: Tensor, reference_prompts: tuple[str, ...]
    ) -> list[bool]:
        """Whether each prediction is not generic.

        Args:
            prefixes: n prefixes.
            log_probs: (n, vocabulary), the predictions at their ends.
        """
        at_once = max(
            1,
            min(
                PREFIXES_AT_ONCE,
                PROBABILITIES_AT_ONCE // (len(reference_prompts) * log_probs.shape[-1]),
            ),
        )
        distinct, informative = list(dict.fromkeys(prefixes)), [False] * len(prefixes)
        for start in range(0, len(distinct), at_once):
            part = distinct[start : start + at_once]
            references = self._reference_predictions(part, reference_prompts)
            for prefix, reference in zip(part, references, strict=True):
                rows = [row for row, each in enumerate(prefixes) if each == prefix]
                overlaps = ((0.5 * log_probs[rows]).exp() @ reference.T).median(-1).values
                for row, overlap in zip(rows, overlaps.tolist(), strict=True):
                    informative[row] = overlap < GENERIC
        return informative

    def _reference_predictions(
        self, prefixes: Sequence[Prefix], reference_prompts: tuple[str, ...]
    ) -> list[Tensor]:
        """Return the model's predictions at the end of each reference prompt and prefix.

        Returns:
            For each prefix square roots of probabilities, (reference_prompts, vocabulary).
        """
        cache = self._reference_cache
        new = [prefix for prefix in prefixes if (prefix, reference_prompts) not in cache]
        known = dict(cache)
        if new:
            states = self._reference_states(new, reference_prompts)
            log_probs = self.base.log_probs(states.flatten(0, 1))
            roots = (0.5 * log_probs).exp().reshape(*states.shape[:2], -1)
            known |= {
                (prefix, reference_prompts): each for prefix, each in zip(new, roots, strict=True)
            }
            most = max(1, PROBABILITIES_AT_ONCE // next(iter(known.values())).numel())
            if len(known) > most:
                self._reference_cache = {}
            self._reference_cache |= dict(list(known.items())[-most:])
        return [known[prefix, reference_prompts] for prefix in prefixes]

    def _reference_states(
        self, prefixes: Sequence[Prefix], reference_prompts: tuple[str, ...]
    ) -> Tensor:
        """Return the head's inputs at the end of each reference prompt and prefix.

        Args:
            prefixes: all of one length.

        Returns:
            (prefixes, reference_prompts, hidden) in fp32.
        """
        ids = [self.base.lm.encode_prompt(prompt) for prompt in reference_prompts]
        if not prefixes[0]:
            return self.base.last_hidden_states(ids)[None]
        if self._prefill is None or self._prefill[0] != reference_prompts:
            self._prefill = reference_prompts, self.base.prefill(ids)
        continuations = torch.tensor(prefixes, device=self.base.lm.device)
        return self.base.last_hidden_states_after(self._prefill[1], continuations).float()
