"""`Calibrator` computes the statistics of background text that Folio's router needs.

The background is text that the base model generates itself, so no data is needed. The statistics
say which words are rare, how hidden states are scaled, and how alike the model's predictions for
different questions are. `Calibrator` also finds the prefix with which the model begins any answer.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.lm import LM
from errata.lm.background import background_texts, key_of, open_prompt
from errata.lm.encoding import in_batches
from errata.methods.association.folio.base_head import BaseHead, Prefill
from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.leaf import EncodedPrompt
from errata.storage.cache import cached_json
from errata.words.names import WordWeights

TEXT_LENGTH = 24
"""Tokens of a background text, at most."""
BATCH = 256
LOGIT_SCALE_TEXTS = 64
"""Background texts that the scale of the logits is fitted on."""
MAX_THRESHOLD = 0.98
"""Upper limit of the calibrated threshold, so that an edit's own prompt, read in another batch or
precision, still reaches it.
"""
GENERIC = 0.5
"""A prediction is generic if its median overlap with those for the reference prompts is at least
this: it says nothing about the prompt.
"""
MAX_PREFIX_LENGTH = 8
"""Tokens; a model whose predictions are still generic by then is compared at the first token."""
REFERENCE_PROMPTS = 16
"""Background prompts that answer prefixes are found with."""
PREFIX_PROMPTS = 128
"""Background prompts whose own answer prefixes the threshold takes into account."""
COMMON_PREFIXES = 3
"""The commonest of those prefixes, on which the threshold is calibrated."""
PREFIXES_AT_ONCE = 8
"""Answer prefixes that are run behind the reference prompts together, at most."""
PROBABILITIES_AT_ONCE = 2**24
"""Probabilities that are in memory together, at most: 64 MB."""
CACHED_ANSWERS, ANSWER_LENGTH = 4096, 16
"""Base-model answers to keep for `Calibrator.same_question`, and their tokens, at most."""

Prefix = tuple[int, ...]


class Calibrator:
    """Calibrates the router, and encodes prompts for it. The base model must carry no patch.

    Args:
        base: the base model's head.
        config: the method's settings.
    """

    def __init__(self, base: BaseHead, config: FolioConfig) -> None:
        self.base, self.config = base, config
        self.lm: LM = base.lm
        self._reference_cache: dict[tuple[Prefix, tuple[str, ...]], Tensor] = {}
        self._prefill: tuple[tuple[str, ...], Prefill] | None = None
        self._answers: dict[str, str] = {}

    def calibrate(self) -> RouterCalibration:
        """Compute the statistics of background text; they are kept on disk."""
        config = self.config
        texts = background_texts(self.lm, config.background, TEXT_LENGTH, config.seed, shortest=4)
        settings = config.threshold, config.min_threshold, config.false_route
        key = json.dumps([key_of(self.lm), texts, settings])
        kept = cached_json("folio", key, lambda: self._measure(texts))
        self.base.logit_scale = kept["logit_scale"]
        center, scale = (
            torch.tensor(kept[name], device=self.lm.device) for name in ("center", "scale")
        )
        return RouterCalibration(
            WordWeights(kept["counts"], len(texts)),
            center,
            scale,
            kept["logit_scale"],
            kept["threshold"],
            _reference_prompts(texts),
        )

    @torch.no_grad()
    def _measure(self, texts: Sequence[str]) -> dict[str, Any]:
        """Compute what `calibrate` keeps on disk."""
        inputs = self._head_inputs(texts)
        self.base.fit_logit_scale(texts[:LOGIT_SCALE_TEXTS])
        threshold = self.config.threshold
        if threshold is None:
            threshold = self._threshold(texts, _reference_prompts(texts))
        return {
            "counts": WordWeights.from_texts(texts).counts,
            "center": inputs.mean(0).tolist(),
            "scale": inputs.std(0).clamp(min=1e-6).tolist(),
            "logit_scale": self.base.logit_scale,
            "threshold": threshold,
        }

    @torch.no_grad()
    def answer_prefixes(
        self, prompts: Sequence[Sequence[int]], keys: Tensor, reference_prompts: tuple[str, ...]
    ) -> list[tuple[Prefix, Tensor]]:
        """Find the tokens with which the model begins its answer whatever the prompt asks.

        As long as the next-token prediction for a prompt is generic (see `GENERIC`), its most
        likely token is appended. If it still is after `MAX_PREFIX_LENGTH` tokens, at the end token
        or at the end of the context, the prefix is empty.

        Args:
            prompts: as tokens.
            keys: (prompts, hidden), the head's inputs at their last tokens.
            reference_prompts: see `RouterCalibration`.

        Returns:
            For each prompt the prefix, and the head's input (hidden,) at the end of both.
        """
        prefixes: list[list[int]] = [[] for _ in prompts]
        states = list(keys)
        results: dict[int, tuple[Prefix, Tensor]] = {}
        pending = list(range(len(prompts)))
        for depth in range(MAX_PREFIX_LENGTH + 1):
            log_probs = self.base.log_probs(torch.stack([states[row] for row in pending]))
            informative = self._informative(
                [tuple(prefixes[row]) for row in pending], log_probs, reference_prompts
            )
            extended = []
            for row, prediction, found in zip(pending, log_probs, informative, strict=True):
                if found:
                    results[row] = tuple(prefixes[row]), states[row]
                elif (
                    depth < MAX_PREFIX_LENGTH
                    and (token := int(prediction.argmax())) not in self.lm.end_ids
                ):
                    prefixes[row].append(token)
                    if len(prompts[row]) + depth + 1 < (self.lm.context_length or math.inf):
                        extended.append(row)
            pending = extended
            if not pending:
                break
            rows = [[*prompts[row], *prefixes[row]] for row in pending]
            for row, state in zip(pending, self._last_hidden_states(rows), strict=True):
                states[row] = state
        return [results.get(row, ((), keys[row])) for row in range(len(prompts))]

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Encode prompts, and run the base model on them."""
        ids = [self.lm.encode_prompt(prompt) for prompt in prompts]
        keys = self._last_hidden_states(ids)
        return [EncodedPrompt(*each) for each in zip(prompts, ids, keys, strict=True)]

    def same_question(self, one: str, other: str) -> bool:
        """Whether the base model gives both prompts the same answer, which is not empty."""
        if one == other:
            return True
        new = [prompt for prompt in (one, other) if prompt not in self._answers]
        if len(self._answers) > CACHED_ANSWERS:
            self._answers.clear()
            new = [one, other]
        answers = self.lm.generate(new, max_new_tokens=ANSWER_LENGTH) if new else []
        self._answers.update(zip(new, answers, strict=True))
        return self._answers[one] == self._answers[other] != ""

    def _threshold(self, texts: Sequence[str], reference_prompts: tuple[str, ...]) -> float:
        """Return the prediction overlap above which only `false_route` of different questions lie.

        Two background prompts are different questions if the model continues them with different
        tokens. They are compared behind each of the commonest answer prefixes.
        """
        prompts = self.encode(list(dict.fromkeys(open_prompt(text) for text in texts)))
        ids, keys = [prompt.ids for prompt in prompts], torch.stack([p.key for p in prompts])
        found = self.answer_prefixes(ids[:PREFIX_PROMPTS], keys[:PREFIX_PROMPTS], reference_prompts)
        counts = Counter(prefix for prefix, _ in found)
        pairs = []
        for prefix, _ in counts.most_common(COMMON_PREFIXES):
            states = self._last_hidden_states([[*row, *prefix] for row in ids]) if prefix else keys
            log_probs = self.base.log_probs(states)
            roots, tokens = (0.5 * log_probs).exp(), log_probs.argmax(-1)
            pairs.append((roots @ roots.T)[tokens[:, None] != tokens[None, :]])
        overlaps = torch.cat(pairs)
        if not len(overlaps):
            return MAX_THRESHOLD
        rank = max(1, math.ceil((1 - self.config.false_route) * len(overlaps)))
        bound = overlaps.kthvalue(rank).values.item()
        return min(max(self.config.min_threshold, bound), MAX_THRESHOLD)

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
            if len(known) > REFERENCE_PROMPTS:  # each is as large as a few rows of the head
                self._reference_cache = {}
            self._reference_cache |= dict(list(known.items())[-REFERENCE_PROMPTS:])
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
        ids = [self.lm.encode_prompt(prompt) for prompt in reference_prompts]
        if not prefixes[0]:
            return self._last_hidden_states(ids)[None]
        if self._prefill is None or self._prefill[0] != reference_prompts:
            self._prefill = reference_prompts, self.base.prefill(ids)
        continuations = torch.tensor(prefixes, device=self.lm.device)
        return self.base.last_hidden_states_after(self._prefill[1], continuations).float()

    def _last_hidden_states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the head's input at the last token of each row, (rows, hidden) in fp32."""
        return torch.stack(
            in_batches(rows, lambda part: list(self.base.last_hidden_states(part)), BATCH, size=len)
        ).float()

    def _head_inputs(self, texts: Sequence[str]) -> Tensor:
        """Return the head's inputs at all tokens of texts, (n, hidden) in fp32."""

        def inputs_of(part: list[str]) -> list[Tensor]:
            batch = self.lm.prompt_batch(part)
            inputs, _ = self.base.run(batch)
            return [row[mask] for row, mask in zip(inputs, batch.prompt_mask, strict=True)]

        return torch.cat(in_batches(texts, inputs_of, BATCH, size=len)).float()


def _reference_prompts(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(open_prompt(text) for text in texts[:REFERENCE_PROMPTS])
