"""`forgetting`: how well a model has forgotten, and what that cost it, as one JSON object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from errata.lm import LM
from errata.progress import OnProgress
from errata.unlearning.measures import (
    ATTACKS,
    Memory,
    against,
    attack_success,
    forget_quality,
    remembered,
    utility,
)
from errata.unlearning.passages import Passage
from errata.unlearning.tampering import quantised, relearning

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


def forgetting(
    lm: LM,
    forget: Sequence[Passage],
    retain: Sequence[Passage],
    progress: OnProgress,
    others: Sequence[Passage] = (),
    retrained: Callable[[], LM] | None = None,
    tamper: bool = False,
) -> dict[str, Any]:
    """Measure a model that was to forget some passages and to keep others.

    Args:
        lm: the model.
        forget, retain: the passages.
        progress: called with what is done.
        others: passages of the same kind that no model was trained on; attackers are to tell those
            that were forgotten from them.
        retrained: opens a model that was trained without what is forgotten: what forgetting should
            come to. Without it there is no forget quality, since nothing says how a model answers
            that never knew.
        tamper: whether it is tried to bring back what was forgotten, see `tampering`.

    Returns:
        `forget` and `retain`: what is measured of each, see `MEANINGS`; `utility`; and where there
        is what they need, `forget_quality`, `attacks` (attack -> AUC), `quantised`
        (bits -> said), `relearned` (steps -> said of what is not taught again), and the same of
        the retrained model under `retrained`.

    Raises:
        PromptTooLongError: a question with its answer does not fit the model's context.
        UsageError: a library is missing.
    """
    gone, kept = remembered(lm, forget, progress), remembered(lm, retain, progress)
    found = _figures(gone, kept)
    strangers = remembered(lm, others, progress) if others else None
    if strangers is not None:
        found["attacks"] = _attacks(gone, strangers)
    if tamper:
        found |= _tampered(lm, forget, progress)
    if retrained is None:
        return found
    never = retrained()
    never_gone = remembered(never, forget, progress)
    found["forget_quality"] = forget_quality(gone, never_gone)
    found["retrained"] = _figures(never_gone, remembered(never, retain, progress))
    if tamper:
        found["retrained"] |= _tampered(never, forget, progress)
    if strangers is not None:
        never_strangers = remembered(never, others, progress)
        found["retrained"]["attacks"] = _attacks(never_gone, never_strangers)
        one, two = against(gone, never_gone), against(strangers, never_strangers)
        found["attacks"]["reference"] = attack_success(one["reference"], two["reference"])
        least, now = found["retrained"]["attacks"]["min_k"], found["attacks"]["min_k"]
        found["privacy_leak"] = (now - least) / least if least else None
    return found


def _figures(gone: Memory, kept: Memory) -> dict[str, Any]:
    return {"forget": gone.means(), "retain": kept.means(), "utility": utility([kept])}


def _tampered(lm: LM, forget: Sequence[Passage], progress: OnProgress) -> dict[str, Any]:
    found: dict[str, Any] = {"quantised": {}}
    for bits in BITS:
        with quantised(lm, bits):
            found["quantised"][bits] = remembered(lm, forget, progress).means()["said"]
    questions = [each for each in forget if each.prompt]
    if len(questions) > 1:
        found["relearned"] = relearning(lm, questions, progress)
    return found


def _attacks(gone: Memory, strangers: Memory) -> dict[str, float]:
    return {
        name: attack_success(gone.attacks[name], strangers.attacks[name])
        for name in ATTACKS
        if name in gone.attacks
    }
