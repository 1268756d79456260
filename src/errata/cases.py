"""`Case`: an edit and the probes that judge it. Methods never see one, so no probe can leak.

In a JSON-lines file, a case is an edit with five more fields::

    {"prompt": ..., "target": ..., "subject": ...,
     "truth": ["Ilo Varn"],
     "rephrases": ["Name the mayor of Kelor."],
     "locality": [{"prompt": "Who is the mayor of Tamis?", "answer": "Ilo Varn",
                   "kind": "neighbour"}],
     "portability": [{"prompt": "Where was the mayor of Kelor born?", "answer": "Tamis",
                      "kind": "hop"}],
     "ood": [{"prompt": "The mayor of Kelor", "answer": "is Ana Brisk, who was elected in May."}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.edit import PROBE_FIELDS, Edit, Example, check_text
from errata.errors import EditError, quoted, suggest
from errata.storage.json_lines import json_type, parse_json_lines

LOCALITY_KINDS = ("unrelated", "neighbour", "same_subject")
"""Prompts the edit must not change: about another subject and relation; about another subject by
the edit's relation; about the edit's subject by another relation.
"""
PORTABILITY_KINDS = ("hop", "alias", "inverse")
"""Prompts whose answers follow from the edit: through further facts; with its subject by another
name; in the inverse direction.
"""
_KINDS = {"locality": LOCALITY_KINDS, "portability": PORTABILITY_KINDS, "ood": ("ood",)}


@dataclass(frozen=True)
class Probe:
    """One prompt beside the edit's own.

    Attributes:
        prompt: the question.
        answer: the right answer, if it is known.
        kind: one of `LOCALITY_KINDS` or `PORTABILITY_KINDS`; "ood" for text that is scored, not
            generated.
        also: other right answers.

    Raises:
        EditError: the prompt is empty or the kind unknown.
    """

    prompt: str
    answer: str | None = None
    kind: str = "unrelated"
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_text("a probe's 'prompt'", self.prompt)
        if self.answer is not None:
            check_text("a probe's 'answer'", self.answer)
        known = [kind for kinds in _KINDS.values() for kind in kinds]
        if self.kind not in known:
            raise EditError(
                f"a probe's kind {quoted(self.kind)} is unknown.{_near(self.kind, known)}"
            )
        for text in self.also:
            check_text("an answer in a probe's 'also'", text)

    @classmethod
    def from_json(cls, data: object, place: str = "locality") -> Probe:
        """Build a probe from JSON: an object with at least a `prompt`, or a text, the prompt.

        Args:
            data: the JSON value.
            place: the field of a case it stands in, which has its own kinds; the first is the
                default.

        Raises:
            EditError: it is no valid probe.
        """
        kinds, known = _KINDS[place], ["prompt", "answer", "kind", "also"]
        if isinstance(data, str):
            return cls(data, kind=kinds[0])
        if not isinstance(data, Mapping):
            raise EditError(f"a probe is a JSON object or a text, got {json_type(data)}.")
        for name in data:
            if name not in known:
                raise EditError(f"unknown field {quoted(name)} in a probe.{suggest(name, known)}")
        if "prompt" not in data:
            raise EditError("a probe lacks its 'prompt'.")
        kind = kinds[0] if data.get("kind") is None else data["kind"]
        also = [] if data.get("also") is None else data["also"]
        if kind not in kinds:
            raise EditError(f"{place} kind {quoted(kind)} is unknown.{_near(kind, kinds)}")
        if not isinstance(also, list):
            raise EditError(f"a probe's 'also' must be a list, got {json_type(also)}.")
        return cls(data["prompt"], data.get("answer"), kind, tuple(also))

    def to_dict(self) -> dict[str, Any]:
        """Return the probe as a JSON object, without empty fields."""
        fields = {**vars(self), "also": list(self.also)}
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True)
class Case:
    """An edit with the probes that judge it.

    Attributes:
        edit: the edit.
        rephrases: other wordings of its prompt, with the same target.
        locality: prompts whose answers must not change.
        portability: prompts whose answers follow from the edit.
        ood: other true text about what was edited, which should become likely (Eq. 10 of the WISE
            paper, arXiv 2405.14768).
        truth: the answers that were right before the edit, where they are known.
    """

    edit: Edit
    rephrases: tuple[str, ...] = field(default=())
    locality: tuple[Probe, ...] = field(default=())
    portability: tuple[Probe, ...] = field(default=())
    ood: tuple[Probe, ...] = field(default=())
    truth: tuple[str, ...] = field(default=())

    def example(self) -> Example:
        """Return the case as a training example; it must not judge the method trained on it."""
        return Example(self.edit, self.rephrases, tuple(probe.prompt for probe in self.locality))

    def to_dict(self) -> dict[str, Any]:
        """Return the case as one JSON object, which can also be read as an edit."""
        out = self.edit.to_dict()
        if self.truth:
            out["truth"] = list(self.truth)
        out["rephrases"] = list(self.rephrases)
        out["locality"] = [probe.to_dict() for probe in self.locality]
        out["portability"] = [probe.to_dict() for probe in self.portability]
        if self.ood:
            out["ood"] = [probe.to_dict() for probe in self.ood]
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """Build a case from one JSON object.

        Raises:
            EditError: the edit or a probe is not valid.
        """
        edit = Edit.from_dict(data, also=PROBE_FIELDS)
        lists = {name: [] if data.get(name) is None else data[name] for name in PROBE_FIELDS}
        for name, value in lists.items():
            if not isinstance(value, list):
                raise EditError(f"'{name}' must be a list, got {json_type(value)}.")
        for name in ("rephrases", "truth"):
            for text in lists[name]:
                check_text(f"a text in '{name}'", text)
        probes = {
            place: tuple(Probe.from_json(probe, place) for probe in lists[place])
            for place in _KINDS
        }
        for place in ("portability", "ood"):
            if any(probe.answer is None for probe in probes[place]):
                raise EditError(f"a probe of {place!r} needs its 'answer'.")
        rephrases, truth = (tuple(lists[name]) for name in ("rephrases", "truth"))
        return cls(edit=edit, rephrases=rephrases, truth=truth, **probes)


def _near(kind: object, known: Iterable[str]) -> str:
    return suggest(kind if isinstance(kind, str) else "", known)


def read_cases(path: str | Path) -> list[Case]:
    """Read a JSON-lines file of cases; a file of edits is read as cases without probes.

    Raises:
        EditError: a line is not valid (file and line are named), or the file holds no case.
    """
    return [case for _, case in read_numbered_cases(path)]


def read_numbered_cases(path: str | Path) -> list[tuple[int, Case]]:
    """Read (line number, case) from every line of a file of cases; see `read_cases`."""
    return parse_json_lines(path, Case.from_dict)


def cases_to_json_lines(cases: Iterable[Case]) -> str:
    """Return cases as JSON lines, ready to be written."""
    return "".join(json.dumps(case.to_dict(), ensure_ascii=False) + "\n" for case in cases)
