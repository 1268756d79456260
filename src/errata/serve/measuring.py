"""How well the edits in a served model hold: measured when asked for, kept for each version.

Reliability is asked with the edits' own prompts, generalization with other wordings of them that
someone gave, locality with prompts that have nothing to do with any edit: beginnings of texts that
the base model writes, the same for all versions, and the edits' prompts about other names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from errata.cases import Case, Probe
from errata.edit import Edit, check_text
from errata.errors import UsageError
from errata.evaluation import evaluate
from errata.lm.background import background_texts, open_prompt
from errata.measures import Answer
from errata.model import EditModel
from errata.probes.question import Fact
from errata.serve.service import Service
from errata.words.names import names_in
from errata.words.parts import mentions

MEASURES = ("reliability", "generalization", "locality")
MOST_EDITS = 100
"""Edits that are asked about in one measurement; of more, so many are drawn."""
TEXTS = 20
"""Texts of the base model whose beginnings are asked for locality."""


@dataclass(frozen=True)
class Share:
    """How many of the prompts asked were answered right."""

    right: int
    asked: int


@dataclass(frozen=True)
class Measurement:
    """What was measured of a version.

    Attributes:
        version: the model's.
        time: when it ended, in UTC.
        edits: edits in the model.
        drawn: those that were asked about.
        worded: those of which there are other wordings.
        shares: measure -> how many were right; a measure for which nothing could be asked is
            missing.
        wrong: the answers that were not right.
    """

    version: int
    time: str
    edits: int
    drawn: int
    worded: int
    shares: dict[str, Share]
    wrong: tuple[Answer, ...]


class Measurements:
    """The measurements of a served model, the last one of each version; in memory alone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._measuring = threading.Lock()
        self._found: dict[int, Measurement] = {}
        self._wordings: dict[str, tuple[str, ...]] = {}

    @property
    def all(self) -> list[Measurement]:
        """All of them, by version."""
        return [self._found[version] for version in sorted(self._found)]

    def word(self, edit: Edit, wordings: Sequence[str]) -> None:
        """Remember other wordings of an edit's prompt. Measurements ask them; no edit learns them.

        Raises:
            EditError: one is empty.
        """
        for wording in wordings:
            check_text("another wording", wording)
        self._wordings[edit.id] = tuple(dict.fromkeys(wordings))

    def measure(self, progress: Callable[[int, int], None] | None = None) -> Measurement:
        """Measure the model as it is; changes wait meanwhile, answers do not.

        Args:
            progress: called with (questions done, questions in all).

        Raises:
            UsageError: there is no edit in the model, or another measurement runs.
        """
        if not self._measuring.acquire(blocking=False):
            raise UsageError("another measurement runs already; wait for it to end.")
        try:
            with self._service.steady() as version:
                edits = self._service.edits
                if not edits:
                    raise UsageError("there is no edit in the model; add one, then measure.")
                model = self._service.model
                cases = cases_for(edits, self._wordings, texts_of(model))
                found = evaluate(model, cases, progress=progress)
            by = {
                name: [answer for answer in found.answers if answer.measure == name]
                for name in MEASURES
            }
            measurement = Measurement(
                version,
                datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                len(edits),
                len(cases),
                sum(bool(case.rephrases) for case in cases),
                {
                    name: Share(sum(answer.right for answer in some), len(some))
                    for name, some in by.items()
                    if some
                },
                tuple(answer for answer in found.answers if not answer.right),
            )
            self._found[version] = measurement
            return measurement
        finally:
            self._measuring.release()


def texts_of(model: EditModel) -> list[str]:
    """Return texts that the base model writes; sampled once, then kept on disk."""
    with model.disable_edits():
        return background_texts(model.lm, TEXTS)


def cases_for(
    edits: Sequence[Edit], wordings: Mapping[str, Sequence[str]], texts: Sequence[str]
) -> list[Case]:
    """Return what is asked about edits.

    Args:
        edits: those in the model.
        wordings: the id of an edit -> other wordings of its prompt.
        texts: of the base model; their beginnings are asked, and names in them are asked about.
    """
    drawn = list(edits)
    if len(drawn) > MOST_EDITS:
        drawn = [drawn[place] for place in sorted(Random(0).sample(range(len(drawn)), MOST_EDITS))]
    subjects = [name for edit in edits if edit.subject for name in (edit.subject, *edit.aliases)]

    def is_free(text: str) -> bool:
        return not any(mentions(text, subject) for subject in subjects)

    names = [name for text in texts for name in names_in(text) if is_free(name)]
    beginnings = dict.fromkeys(map(_beginning, texts))
    unrelated = tuple(Probe(text) for text in beginnings if text.strip() and is_free(text))
    cases: list[Case] = []
    for edit in drawn:
        name = Random(edit.id).choice(names) if names else None
        about = Fact(Case(edit)).named(edit.prompt, name) if name else None
        neighbour = (Probe(about, kind="neighbour"),) if about and is_free(about) else ()
        rephrases = tuple(wordings.get(edit.id, ()))
        cases.append(Case(edit, rephrases, unrelated + neighbour if not cases else neighbour))
    return cases


def _beginning(text: str) -> str:
    """Return a text up to its last name, or where it has not two, the first half of its words."""
    if (opened := open_prompt(text)) != text:
        return opened
    words = text.split()
    return " ".join(words[: (len(words) + 1) // 2])
