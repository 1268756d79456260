"""What Folio knows of text that no edit is about: texts of the model's own making, and where its
answers begin to tell.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from errata.lm import LM
from errata.lm.background import background_texts, key_of, open_prompt
from errata.lm.encoding import in_batches
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.leaves import EncodedPrompt, RouterCalibration
from errata.storage.cache import cached_json
from errata.words.names import WordWeights

TEXT_LENGTH = 24
"""Tokens of a background text, at most."""
BATCH = 256
LEADS = 8
"""Leads behind which the reference_prompts are asked together, at most."""
MEASURED = 64
"""Texts on which the scale of the logits is measured."""
NUMBERS = 2**24
"""Probabilities that are looked at together, at most: 64 MB."""
HIGHEST = 0.98
"""The threshold is never above: an edit's own prompt, read in another batch or precision, must
reach it.
"""
GENERIC = 0.5
"""What the model expects next tells nothing where half of the background's prompts lead it to
expect the same so far.
"""
LONGEST_LEAD = 8
"""Tokens; a model that has told nothing by then is compared by its first."""
JUDGES = 16
"""Prompts of the background by which leads are found."""
ANSWERS, ANSWER_LENGTH = 4096, 16
"""Of the base model's answers to edits so many are remembered, of so many tokens at most."""
LEARNED = 128
"""Prompts of the background whose own leads are looked at for the threshold."""
COMMON = 3
"""Of these leads so many, the commonest, decide the threshold."""


class FolioBackground:
    """Asks the base model, which must carry no patch.

    Args:
        base: it, at its head.
        config: the method's settings.
    """

    def __init__(self, base: BaseHead, config: FolioConfig) -> None:
        self.base, self.config = base, config
        self.lm: LM = base.lm
        self._expected_after: dict[tuple[tuple[int, ...], tuple[str, ...]], Tensor] = {}
        self._begun: tuple[tuple[str, ...], tuple[Cache, Tensor]] | None = None
        self._answers: dict[str, str] = {}

    def signs(self) -> RouterCalibration:
        """What text is like that no edit is about, and what it takes to speak; kept on disk (see
        `cache.py`).
        """
        config = self.config
        texts = background_texts(self.lm, config.background, TEXT_LENGTH, config.seed, shortest=4)
        settings = config.threshold, config.least, config.false_route
        key = json.dumps([key_of(self.lm), texts, settings])
        kept = cached_json("folio", key, lambda: self._looked_at(texts))
        self.base.logit_scale = kept["sharpness"]
        center, scale = (
            torch.tensor(kept[name], device=self.lm.device) for name in ("center", "scale")
        )
        weights = WordWeights(kept["counts"], len(texts))
        return RouterCalibration(
            weights, center, scale, kept["sharpness"], kept["threshold"], _judges(texts)
        )

    @torch.no_grad()
    def _looked_at(self, texts: Sequence[str]) -> dict[str, Any]:
        """What `signs` keeps of texts."""
        read = self._read(texts)
        self.base.measure(texts[:MEASURED])
        threshold = self.config.threshold
        return {
            "counts": WordWeights.over(texts).counts,
            "center": read.mean(0).tolist(),
            "scale": read.std(0).clamp(min=1e-6).tolist(),
            "sharpness": self.base.logit_scale,
            "threshold": self._threshold(texts, _judges(texts)) if threshold is None else threshold,
        }

    @torch.no_grad()
    def leads(
        self, prompts: Sequence[Sequence[int]], keys: Tensor, reference_prompts: tuple[str, ...]
    ) -> list[tuple[tuple[int, ...], Tensor]]:
        """(lead, the head's input behind it) of prompts, given as tokens and the head's inputs (n,
        hidden) behind them.
        """
        leads: list[list[int]] = [[] for _ in prompts]
        tips = list(keys)
        found: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        looking = list(range(len(prompts)))
        for depth in range(LONGEST_LEAD + 1):
            logs = self.base.expected(torch.stack([tips[row] for row in looking]))
            further = []
            tells = self._tells([tuple(leads[row]) for row in looking], logs, reference_prompts)
            for row, expected, told in zip(looking, logs, tells, strict=True):
                if told:
                    found[row] = tuple(leads[row]), tips[row]
                elif (
                    depth < LONGEST_LEAD
                    and (token := int(expected.argmax())) not in self.lm.end_ids
                ):
                    leads[row].append(token)
                    if len(prompts[row]) + depth + 1 < (self.lm.context_length or math.inf):
                        further.append(row)
            looking = further
            if not looking:
                break
            for row, tip in zip(
                looking, self._tips([[*prompts[row], *leads[row]] for row in looking]), strict=True
            ):
                tips[row] = tip
        return [found.get(row, ((), keys[row])) for row in range(len(prompts))]

    def asked(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Prompts, with their tokens and what the head reads at their end."""
        ids = [self.lm.encode_prompt(prompt) for prompt in prompts]
        return [EncodedPrompt(*each) for each in zip(prompts, ids, self._tips(ids), strict=True)]

    def same_question(self, one: str, other: str) -> bool:
        """Whether the base model has one answer to both, and has one."""
        if one == other:
            return True
        new = [prompt for prompt in (one, other) if prompt not in self._answers]
        if len(self._answers) > ANSWERS:
            self._answers.clear()
            new = [one, other]
        self._answers.update(
            zip(
                new, self.lm.generate(new, max_new_tokens=ANSWER_LENGTH) if new else [], strict=True
            )
        )
        return self._answers[one] == self._answers[other] != ""

    def _threshold(self, texts: Sequence[str], reference_prompts: tuple[str, ...]) -> float:
        prompts = self.asked(list(dict.fromkeys(open_prompt(text) for text in texts)))
        ids, keys = [asked.ids for asked in prompts], torch.stack([asked.key for asked in prompts])
        leads = [lead for lead, _ in self.leads(ids[:LEARNED], keys[:LEARNED], reference_prompts)]
        pairs = []
        for lead, _ in Counter(leads).most_common(COMMON):
            logs = self.base.expected(self._tips([[*row, *lead] for row in ids]) if lead else keys)
            halves, onward = (0.5 * logs).exp(), logs.argmax(-1)
            pairs.append((halves @ halves.T)[onward[:, None] != onward[None, :]])
        alike = torch.cat(pairs)
        if not len(alike):
            return HIGHEST
        bound = alike.kthvalue(
            max(1, math.ceil((1 - self.config.false_route) * len(alike)))
        ).values.item()
        return min(max(self.config.least, bound), HIGHEST)

    def _tells(
        self, leads: Sequence[tuple[int, ...]], logs: Tensor, reference_prompts: tuple[str, ...]
    ) -> list[bool]:
        """Whether what is expected behind each lead, log-probabilities (n, vocabulary), is not so
        behind any prompt.
        """
        at_once = max(1, min(LEADS, NUMBERS // (len(reference_prompts) * logs.shape[-1])))
        different, told = list(dict.fromkeys(leads)), [False] * len(leads)
        for start in range(0, len(different), at_once):
            some = different[start : start + at_once]
            for lead, after in zip(some, self._after(some, reference_prompts), strict=True):
                rows = [row for row, each in enumerate(leads) if each == lead]
                alike = ((0.5 * logs[rows]).exp() @ after.T).median(-1).values
                for row, share in zip(rows, alike.tolist(), strict=True):
                    told[row] = share < GENERIC
        return told

    def _after(
        self, leads: Sequence[tuple[int, ...]], reference_prompts: tuple[str, ...]
    ) -> list[Tensor]:
        """Square roots of what the base model expects behind the reference_prompts and each of the
        leads, (reference_prompts, vocabulary) each.
        """
        new = [lead for lead in leads if (lead, reference_prompts) not in self._expected_after]
        made = dict(self._expected_after)
        if new:
            tips = self._behind_judges(new, reference_prompts)
            expected = (
                (0.5 * self.base.expected(tips.flatten(0, 1))).exp().reshape(*tips.shape[:2], -1)
            )
            made |= {
                (lead, reference_prompts): after for lead, after in zip(new, expected, strict=True)
            }
            if len(made) > JUDGES:  # each is as large as a few rows of the head
                self._expected_after = {}
            self._expected_after |= dict(list(made.items())[-JUDGES:])
        return [made[lead, reference_prompts] for lead in leads]

    def _behind_judges(
        self, leads: Sequence[tuple[int, ...]], reference_prompts: tuple[str, ...]
    ) -> Tensor:
        """What the head reads behind the reference_prompts and leads of one length, (leads,
        reference_prompts, hidden).
        """
        if not leads[0]:
            return self._tips([self.lm.encode_prompt(prompt) for prompt in reference_prompts])[None]
        if self._begun is None or self._begun[0] != reference_prompts:
            self._begun = (
                reference_prompts,
                self.base.begin([self.lm.encode_prompt(prompt) for prompt in reference_prompts]),
            )
        ends = torch.tensor(leads, device=self.lm.device)
        return self.base.tips_behind(self._begun[1], ends).float()

    def _tips(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.stack(
            in_batches(rows, lambda part: list(self.base.tips(part)), BATCH, size=len)
        ).float()

    def _read(self, texts: Sequence[str]) -> Tensor:
        """What the head reads at all tokens of texts, (n, hidden) in fp32."""

        def reading(part: list[str]) -> list[Tensor]:
            batch = self.lm.prompt_batch(part)
            inputs = self.base.read(batch)[0]
            return [row[mask] for row, mask in zip(inputs, batch.prompt_mask, strict=True)]

        return torch.cat(in_batches(texts, reading, BATCH, size=len)).float()


def _judges(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(open_prompt(text) for text in texts[:JUDGES])
