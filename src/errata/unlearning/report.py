"""`known`: what a model knows of what it was to forget; `forgetting`: how well it has forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.lm import LM
from errata.progress import OnProgress
from errata.unlearning.attacks import ATTACKS, against, attack_success, attacks, likelihoods
from errata.unlearning.measures import (
    Memory,
    forget_quality,
    remembered,
    share_said,
    utility,
)
from errata.unlearning.passages import Passage
from errata.unlearning.tampering import STEPS, quantised, relearning

BITS = (8, 4)
"""To which weights are rounded when it is tried to bring back what was forgotten."""
MEANINGS = {
    "said": "the answer stands in what the model says freely",
    "rouge": "how much of it does (ROUGE-L recall)",
    "probability": "of a token of the answer",
    "truth_ratio": "how likely wrong answers are against it, in other words",
    "exact": "share of its tokens that are the likeliest (exact memorisation)",
    "broken": "the answer is no language: empty, or mostly repeated words",
    "extraction": "share of it, at its end, that the model goes on with (extraction strength)",
}
"""What is measured of a set of passages."""


@dataclass(frozen=True)
class Known:
    """What a model knows of what was to be forgotten and of what was to be kept.

    Attributes:
        gone, kept: of the passages.
        strangers: attack -> scores, of passages of the same kind that no model was trained on.
        tampered: what it says of `gone` once it is tried to bring it back: `quantised`
            (bits -> said), `relearned` (steps -> said of what is not taught again); empty where it
            was not tried.
    """

    gone: Memory
    kept: Memory
    strangers: Mapping[str, Sequence[float]]
    tampered: Mapping[str, Mapping[int, float]]

    def figures(self) -> dict[str, Any]:
        """Return means, and who could tell."""
        found: dict[str, Any] = {
            "forget": self.gone.means(),
            "retain": self.kept.means(),
            "utility": utility([self.kept]),
            **self.tampered,
        }
        if self.strangers:
            found["attacks"] = {
                name: attack_success(self.gone.attacks[name], self.strangers[name])
                for name in ATTACKS
                if name in self.strangers
            }
        return found


def known(
    lm: LM,
    forget: Sequence[Passage],
    retain: Sequence[Passage],
    progress: OnProgress,
    others: Sequence[Passage] = (),
    tamper: bool = False,
    steps: Sequence[int] = STEPS,
) -> Known:
    """Ask a model about what it was to forget and what it was to keep.

    Args:
        lm: the model.
        forget, retain: the passages.
        progress: called with what is done.
        others: passages of the same kind that no model was trained on; attackers are to tell those
            that were forgotten from them.
        tamper: whether it is tried to bring back what was forgotten, see `tampering`.
        steps: of training, with which that is tried, rising.

    Raises:
        PromptTooLongError: a question with its answer does not fit the model's context.
        UsageError: a library is missing.
    """
    tampered: dict[str, dict[int, float]] = {}
    gone, kept = remembered(lm, forget, progress), remembered(lm, retain, progress)
    strangers = attacks(lm, others, likelihoods(lm, others, progress)) if others else {}
    if tamper:
        tampered["quantised"] = {}
        for bits in BITS:
            with quantised(lm, bits):
                tampered["quantised"][bits] = share_said(lm, forget, progress)
        questions = [each for each in forget if each.prompt]
        if len(questions) > 1:
            tampered["relearned"] = relearning(lm, questions, progress, steps)
    return Known(gone, kept, strangers, tampered)


def forgetting(found: Known, never: Known | None = None) -> dict[str, Any]:
    """Return how well a model has forgotten, and what that cost it.

    Args:
        found: what it knows.
        never: what a model knows, of the same, that was trained without what is forgotten: what
            forgetting should come to. Without it there is no forget quality, since nothing says
            how a model answers that never knew.

    Returns:
        `forget` and `retain`: what is measured of each, see `MEANINGS`; `utility`; and where there
        is what they need, `forget_quality`, `attacks` (attack -> AUC), `quantised`, `relearned`,
        and the same of the retrained model under `retrained`.

    Raises:
        UsageError: a library is missing.
    """
    figures = found.figures()
    if never is None:
        return figures
    figures["forget_quality"] = forget_quality(found.gone, never.gone)
    figures["retrained"] = never.figures()
    if found.strangers:
        figures["attacks"]["reference"] = attack_success(
            against(found.gone.attacks, never.gone.attacks),
            against(found.strangers, never.strangers),
        )
        least, now = figures["retrained"]["attacks"]["min_k"], figures["attacks"]["min_k"]
        figures["privacy_leak"] = (now - least) / least if least else None
    return figures
