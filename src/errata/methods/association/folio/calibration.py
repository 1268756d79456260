"""`RouterCalibration`: what Folio's router knows of the base model before the first edit."""

from __future__ import annotations

from dataclasses import dataclass

from errata.methods.association.folio.intents import IntentClassifier
from errata.methods.association.folio.question_space import QuestionSpace
from errata.words.names import WordWeights


@dataclass(frozen=True)
class RouterCalibration:
    """Statistics of background text, and what tells prompts apart.

    Attributes:
        weights: words, weighted by how rare they are.
        logit_scale: see `BaseHead.logit_scale`.
        space: where prompts are compared by what they ask.
        intents: tells in which way they ask.
        threshold: score from which a leaf answers a prompt.
        generic: tokens that the base model begins many an answer with, whatever is asked.
    """

    weights: WordWeights
    logit_scale: float
    space: QuestionSpace
    intents: IntentClassifier
    threshold: float
    generic: frozenset[int] = frozenset()
