"""Makes cases of a task's records, by its field map.

A field map says for prompt, target, subject, truth (the answers that were right before) and
rephrases the dotted path in a record, "?" behind a path that may be missing. With `each`, every
element of that list is an edit of its own. Probes have `kind`, `prompt`, `answer`, `also` (further
right answers), and `each` where they are a list of objects; `subject` is another name for "{}" to
stand for. `leave_out` has, for each value of its path `by`, a regular expression: prompts in which
it is found are left out. With `of = "record"` they are of the whole record, and belong to its last
edit; `steps` and `results` are then the questions that the answer rests on and their answers: where
an edit of the file gives one of them another, the probe contradicts it and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from errata.bench.published import Record, texts_at, values_at
from errata.bench.task_fields import PLACES
from errata.cases import Case, Probe
from errata.edit import Edit
from errata.words.parts import mentions


def cases_of(
    fields: Mapping[str, Any],
    record: Record,
    name: str,
    operation: str,
    instead: str | None,
    rests: dict[Probe, dict[str, str]],
) -> Iterator[Case]:
    """Make the cases of a record.

    Args:
        fields: the field map.
        record: one record of the file.
        name: the edits' ids begin with it.
        operation: of the edits.
        instead: the answer wanted in the place of what the record has as its answer.
        rests: takes what probes rest on: question -> answer.

    Raises:
        EditError: the record does not fit the field map.
    """
    parts: Sequence[Any] = [record]
    if "each" in fields:
        parts = _flat(values_at(record, fields["each"]))
    for place, part in enumerate(parts, start=1):
        subject = (
            next(iter(texts_at(part, fields["subject"])), None) if "subject" in fields else None
        )

        def texts_of(
            of: Any, path: str, other: str | None = None, subject: str | None = subject
        ) -> list[str]:
            return [text.replace("{}", other or subject or "") for text in texts_at(of, path)]

        prompt = texts_of(part, fields["prompt"])[0]
        truth = texts_at(part, fields["truth"]) if "truth" in fields else []
        target = instead or _target(part, fields["target"])
        if target is None:
            continue
        edit_id = f"{name}-{place}" if len(parts) > 1 else name
        within = subject if subject and mentions(prompt, subject) else None
        edit = Edit(prompt, target, within, operation, edit_id)  # type: ignore[arg-type]
        rephrases = tuple(
            text for path in fields.get("rephrases", ()) for text in texts_of(part, path)
        )
        probes: dict[str, tuple[Probe, ...]] = {}
        for field in PLACES:
            maps = [
                each
                for each in fields.get(field, ())
                if place == len(parts) or each.get("of") != "record"
            ]
            made: list[Probe] = []
            for each in maps:
                of = record if each.get("of") == "record" else part
                some = list(_probes(each, of, texts_of))
                if "steps" in each:
                    steps, results = (texts_at(of, each[name]) for name in ("steps", "results"))
                    rests |= {probe: dict(zip(steps, results, strict=False)) for probe in some}
                made += some
            if field == "locality":  # some files ask what is edited itself
                made = [probe for probe in made if probe.prompt != prompt]
            probes[field] = tuple(dict.fromkeys(made))
        yield Case(edit, rephrases, **probes, truth=tuple(truth))


def _target(part: Any, path: str) -> str | None:
    """Return an edit's target; None where the field is there and empty."""
    there = bool(values_at(part, path))
    return next(iter(texts_at(part, path + "?" if there else path)), None)


def _probes(given: Mapping[str, Any], part: Any, texts_of: Any) -> Iterator[Probe]:
    """Make the probes that one line of a field map describes."""
    kind = given["kind"]
    unwanted = None
    if patterns := given.get("leave_out"):
        (value,) = texts_at(part, patterns["by"])[:1] or [""]
        unwanted = patterns.get(value)
    places = [part]
    if "each" in given:
        places = _flat(values_at(part, given["each"].removesuffix("?")))
    for place in places:
        names = texts_at(place, given["subject"] + "?") if "subject" in given else [None]
        prompts = [text for name in names for text in texts_of(place, given["prompt"], name)]
        if unwanted:
            prompts = [text for text in prompts if not re.search(unwanted, text)]
        if "text" in given:  # one text, which begins with the prompt
            for text in texts_of(place, given["text"]):
                yield Probe(prompts[0], text.removeprefix(prompts[0]).strip() or text, kind)
            continue
        compared = "answer" in given  # else with the base model's answer alone
        answers: list[str] = []
        if compared:
            answers = texts_at(place, given["answer"] + "?" * ("each" in given))
        also = texts_at(place, given["also"] + "?") if "also" in given else []
        if compared and not answers and kind != "unrelated":
            continue
        others = tuple(dict.fromkeys([*answers[1:], *also]))
        for prompt in prompts:
            yield Probe(prompt, answers[0] if answers else None, kind, others)


def _flat(found: list[Any]) -> list[Any]:
    return [each for value in found for each in (value if isinstance(value, list) else [value])]
