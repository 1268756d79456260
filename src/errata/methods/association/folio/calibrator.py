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
from errata.methods.association.folio.answer_prefixes import AnswerPrefixes
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.leaf import EncodedPrompt, Prefix, Question
from errata.progress import report
from errata.storage.cache import cached_json
from errata.words.names import WordWeights

BATCH = 32
"""Prompts that are read at once."""
LOGIT_SCALE_TEXTS = 8
"""Background texts that the scale of the logits is fitted on."""
THRESHOLD_PROMPTS = 32
"""Background prompts that the states' scale and the threshold are measured on, at most."""
PREFIX_PROMPTS = 12
"""Those of them whose own answer prefixes the threshold takes into account."""
MAX_THRESHOLD = 0.98
"""Upper limit of the calibrated threshold, so that an edit's own prompt, read in another batch or
precision, still reaches it.
"""
REFERENCE_PROMPTS = 8
"""Background prompts that answer prefixes are found with."""
COMMON_PREFIXES = 2
"""The commonest of those prefixes, on which the threshold is calibrated."""
CACHED, ANSWER_LENGTH = 4096, 16
"""Questions and base-model answers that are kept; and the answers' tokens, at most."""
CALIBRATING = "calibrating the router"


class Calibrator:
    """Calibrates the router, and encodes prompts for it. The base model must carry no patch.

    Args:
        base: the base model's head.
        config: the method's settings.
    """

    def __init__(self, base: BaseHead, config: FolioConfig) -> None:
        self.base, self.config = base, config
        self.lm: LM = base.lm
        self.answer_prefixes = AnswerPrefixes(base)
        self._answers: dict[str, str] = {}
        self._questions: dict[str, Question] = {}

    def calibrate(self) -> RouterCalibration:
        """Compute the statistics of background text; they are kept on disk."""
        config = self.config
        texts = background_texts(self.lm, config.background, seed=config.seed)
        settings = config.threshold, config.min_threshold, config.false_route
        key = json.dumps([key_of(self.lm), texts, settings])
        kept = cached_json("router", key, lambda: self._measure(texts), self.lm.name)
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
        report(CALIBRATING, 0, 3)
        self.base.fit_logit_scale(texts[:LOGIT_SCALE_TEXTS])
        prompts = list(dict.fromkeys(open_prompt(text) for text in texts))[:THRESHOLD_PROMPTS]
        report(CALIBRATING, 1, 3)
        encoded, threshold = self.encode(prompts), self.config.threshold
        keys = torch.stack([prompt.key for prompt in encoded])
        if threshold is None:
            report(CALIBRATING, 2, 3)
            found = self.questions(prompts[:PREFIX_PROMPTS], _reference_prompts(texts))
            threshold = self._threshold(encoded, [each.answer_prefix for each in found])
        return {
            "counts": WordWeights.from_texts(texts).counts,
            "center": keys.mean(0).tolist(),
            "scale": keys.std(0, correction=0).clamp(min=1e-6).tolist(),
            "logit_scale": self.base.logit_scale,
            "threshold": threshold,
        }

    @torch.no_grad()
    def questions(
        self, prompts: Sequence[str], reference_prompts: tuple[str, ...]
    ) -> list[Question]:
        """Read prompts with the base model as the router stores them; the latest are kept.

        Args:
            prompts: the prompts.
            reference_prompts: see `RouterCalibration`.
        """
        if len(self._questions) > CACHED:
            self._questions.clear()
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._questions]
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            ids = [self.lm.encode_prompt(prompt) for prompt in part]
            read = self.base.prefill(ids)
            keys = read.states
            found = self.answer_prefixes.find(ids, read, reference_prompts)
            self._questions |= {
                prompt: Question(prompt, tokens, key, prefix, state)
                for prompt, tokens, key, (prefix, state) in zip(part, ids, keys, found, strict=True)
            }
        return [self._questions[prompt] for prompt in prompts]

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Encode prompts as the patch does, and run the base model on them."""
        encoded = []
        ids = [self.lm.encode_prompt(prompt) for prompt in prompts]
        for tokens, key in zip(ids, self._last_hidden_states(ids), strict=True):
            text, *earlier = self.lm.conversation(tokens).questions
            encoded.append(EncodedPrompt(text, tokens, key, tuple(earlier)))
        return encoded

    def same_question(self, one: str, other: str) -> bool:
        """Whether the base model gives both prompts the same answer, which is not empty."""
        if one == other:
            return True
        new = [prompt for prompt in (one, other) if prompt not in self._answers]
        if len(self._answers) > CACHED:
            self._answers.clear()
            new = [one, other]
        answers = self.lm.generate(new, max_new_tokens=ANSWER_LENGTH) if new else []
        self._answers.update(zip(new, answers, strict=True))
        return self._answers[one] == self._answers[other] != ""

    def _threshold(self, prompts: Sequence[EncodedPrompt], prefixes: Sequence[Prefix]) -> float:
        """Return the prediction overlap above which only `false_route` of different questions lie.

        Two background prompts are different questions if the model continues them with different
        tokens. They are compared behind each of the commonest answer prefixes.
        """
        counts = Counter(prefixes)
        pairs = []
        for prefix, _ in counts.most_common(COMMON_PREFIXES):
            states = (
                self._last_hidden_states([[*prompt.ids, *prefix] for prompt in prompts])
                if prefix
                else torch.stack([prompt.key for prompt in prompts])
            )
            log_probs = self.base.log_probs(states)
            roots, tokens = (0.5 * log_probs).exp(), log_probs.argmax(-1)
            pairs.append((roots @ roots.T)[tokens[:, None] != tokens[None, :]])
        overlaps = torch.cat(pairs)
        if not len(overlaps):
            return MAX_THRESHOLD
        rank = max(1, math.ceil((1 - self.config.false_route) * len(overlaps)))
        bound = overlaps.kthvalue(rank).values.item()
        return min(max(self.config.min_threshold, bound), MAX_THRESHOLD)

    def _last_hidden_states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the head's input at the last token of each row, (rows, hidden) in fp32."""
        return torch.stack(
            in_batches(rows, lambda part: list(self.base.last_hidden_states(part)), BATCH, size=len)
        )


def _reference_prompts(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(open_prompt(text) for text in texts[:REFERENCE_PROMPTS])
