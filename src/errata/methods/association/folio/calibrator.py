"""`Calibrator` computes what Folio's router needs to know of the base model, once per model.

The background is text that the base model generates itself, so no data is needed: it says which
words are rare, and how answers begin. What tells questions apart is fitted on wordings that come
with errata, see `question_space.py` and `intents.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from errata.lm import LM
from errata.lm.background import background_texts, key_of, open_prompt
from errata.lm.encoding import in_batches
from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.intents import IntentClassifier
from errata.methods.association.folio.leaf import EncodedPrompt
from errata.methods.association.folio.question_reader import WORDINGS, QuestionReader
from errata.methods.association.folio.question_space import QuestionSpace
from errata.progress import report
from errata.storage.cache import cached_json
from errata.words.names import WordWeights

BATCH = 32
"""Prompts that are read at once."""
LOGIT_SCALE_TEXTS = 2
"""Background texts that the scale of the logits is fitted on."""
OPEN_PROMPTS = 12
"""Background prompts whose answers' beginnings are looked at, at most."""
GENERIC = 0.05
"""Mean probability, behind those prompts, from which a token begins many an answer."""
CACHED, ANSWER_LENGTH = 4096, 16
"""Base-model answers that are kept; and their tokens, at most."""
CALIBRATING = "calibrating the router"
FORMAT = 4
"""Of what is kept on disk."""
THRESHOLD = 0.5


class Calibrator:
    """Calibrates the router, and encodes prompts for it. The base model must carry no patch.

    Args:
        reader: reads what wordings ask.
        config: the method's settings.
    """

    def __init__(self, reader: QuestionReader, config: FolioConfig) -> None:
        self.reader, self.base, self.config = reader, reader.base, config
        self.lm: LM = reader.lm
        self._answers: dict[str, str] = {}

    def calibrate(self) -> RouterCalibration:
        """Compute the statistics of background text, and the space; they are kept on disk."""
        config = self.config
        texts = background_texts(self.lm, config.background, seed=config.seed)
        key = json.dumps([key_of(self.lm), texts, FORMAT])
        kept = cached_json("router", key, lambda: self._measure(texts), self.lm.name)
        self.base.logit_scale = kept["logit_scale"]
        return RouterCalibration(
            WordWeights(kept["counts"], len(texts)),
            kept["logit_scale"],
            *self.fitted(),
            self.threshold,
            frozenset(kept["generic"]),
        )

    @property
    def threshold(self) -> float:
        """The score from which a leaf answers."""
        return THRESHOLD if self.config.threshold is None else self.config.threshold

    @torch.no_grad()
    def fitted(self) -> tuple[QuestionSpace, IntentClassifier]:
        """Return what tells questions and ways of asking apart; it is kept on disk."""
        key = json.dumps([key_of(self.lm), self.config.false_route, WORDINGS])

        def fit() -> list[Any]:
            space, intents = self.reader.fit(self.config.false_route)
            tensors = (
                *(space.center, space.projection, space.shared, space.spread),
                *(intents.weights, intents.bias),
            )
            return [*(tensor.tolist() for tensor in tensors), space.boundary]

        *tensors, boundary = cached_json("router", f"{key} space", fit, self.lm.name)
        center, projection, shared, spread, weights, bias = (
            torch.tensor(each, device=self.lm.device) for each in tensors
        )
        return (
            QuestionSpace(center, projection, shared, spread, boundary),
            IntentClassifier(weights, bias),
        )

    @torch.no_grad()
    def _measure(self, texts: Sequence[str]) -> dict[str, Any]:
        """Compute what `calibrate` keeps on disk of background text."""
        report(CALIBRATING, 0, 2)
        self.base.fit_logit_scale(texts[:LOGIT_SCALE_TEXTS])
        prompts = list(dict.fromkeys(open_prompt(text) for text in texts))[:OPEN_PROMPTS]
        report(CALIBRATING, 1, 2)
        keys = self.base.last_hidden_states([self.lm.encode_prompt(prompt) for prompt in prompts])
        begun = self.base.log_probs(keys).exp().mean(0)
        return {
            "counts": WordWeights.from_texts(texts).counts,
            "logit_scale": self.base.logit_scale,
            "generic": (begun >= GENERIC).nonzero()[:, 0].tolist(),
        }

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Encode prompts; the base model does not read them."""
        encoded = []
        for ids in map(self.lm.encode_prompt, prompts):
            text, *earlier = self.lm.questions(ids)
            encoded.append(EncodedPrompt(text, tuple(earlier), tuple(ids)))
        return encoded

    def read(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Encode prompts as the patch does, and let the base model read them."""
        encoded = self.encode(prompts)
        keys = in_batches(
            [prompt.ids for prompt in encoded],
            lambda part: list(self.base.last_hidden_states(part)),
            BATCH,
            size=len,
        )
        return [replace(prompt, key=key) for prompt, key in zip(encoded, keys, strict=True)]

    def same_questions(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the base model gives both prompts of each pair one answer, which is not empty."""
        if len(self._answers) > CACHED:
            self._answers = {}
        asked = {prompt for one, other in pairs if one != other for prompt in (one, other)}
        new = sorted(asked - self._answers.keys())
        answers = self.lm.generate(new, max_new_tokens=ANSWER_LENGTH) if new else []
        self._answers |= zip(new, answers, strict=True)
        return [
            one == other or self._answers[one] == self._answers[other] != "" for one, other in pairs
        ]
