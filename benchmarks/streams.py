"""Streams of cases to be written one after another: published files as they are, and large ones
about atlas's world.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from errata import Case, Edit, Probe
from errata.atlas import make_cases
from errata.atlas.cases import max_cases
from errata.atlas.world import build_world

Record = dict[str, Any]
FILES = {
    "zsre": "zsre/zsre_mend_edit.json",
    "counterfact": "counterfact/counterfact-edit.json",
    "knowedit": "knowedit/ZsRE-relation-specificity.json",
}
"""The published files, under a folder of them."""


def published(folder: Path, name: str, conflict_free: bool = False) -> list[Case]:
    """The records of a published file as cases.

    Args:
        conflict_free: without the records that ask what another one asks, of the same subject and
            with the same true answer, and want another answer; and without the locality probes that
            ask what a record edits: they mention its subject and have its true answer.
    """
    records = json.loads((folder / FILES[name]).read_text("utf-8"))
    wanted: dict[tuple[str, frozenset[str]], set[str]] = defaultdict(set)
    for record in records:
        wanted[record["subject"], frozenset(_truth(record))].add(
            record.get("alt") or record["target_new"]
        )
    if conflict_free:
        records = [
            record
            for record in records
            if len(wanted[record["subject"], frozenset(_truth(record))]) == 1
        ]
    cases = [_READERS[name](record, str(place)) for place, record in enumerate(records)]
    return _apart_from([*wanted], cases) if conflict_free else cases


def _apart_from(edited: Iterable[tuple[str, frozenset[str]]], cases: Iterable[Case]) -> list[Case]:
    """The cases without the probes that ask for what is edited, (subject, true answers)."""
    by_answer = defaultdict(list)
    for subject, truth in edited:
        for answer in truth:
            by_answer[answer].append(subject)

    def stays(probe: Probe) -> bool:
        return not any(
            subject in probe.prompt for subject in by_answer[(probe.answer or "").lower()]
        )

    return [
        replace(case, locality=tuple(probe for probe in case.locality if stays(probe)))
        for case in cases
    ]


def without_subject(cases: Iterable[Case]) -> list[Case]:
    """The same, and no edit says what it is about."""
    return [replace(case, edit=replace(case.edit, subject=None)) for case in cases]


def drawn_again(n: int) -> list[Case]:
    """`n` cases about the facts that atlas knows, each drawn with new answers as often as it takes.

    Later ones contradict earlier ones; see `final`.
    """
    found: list[Case] = []
    while len(found) < n:
        round_ = make_cases(max_cases(), seed=len(found))
        found += [
            replace(case, edit=replace(case.edit, id=f"{len(found)}-{case.edit.id}"))
            for case in round_
        ]
    return found[:n]


def final(cases: Iterable[Case]) -> list[Case]:
    """The last case about each fact of atlas."""
    facts = {prompt: fact.key for fact in build_world().facts.values() for prompt in fact.prompts()}
    return list({facts[case.edit.prompt]: case for case in cases}.values())


def enlarged(n: int) -> list[Case]:
    """`n` cases, no two about one fact: those of the world that atlas knows, then of other worlds
    that it never met.

    The worlds share names, so a locality probe of one may ask what a case of another edits; such
    probes are left out.
    """
    found: dict[tuple[str, str], tuple[Case, dict[str, tuple[str, str]]]] = {}
    own = build_world()
    seed = own.seed
    while len(found) < n:
        world = own if seed == own.seed else build_world(seed)
        asks = {prompt: fact.key for fact in world.facts.values() for prompt in fact.prompts()}
        for case in make_cases(max_cases(world), 0, world):
            case = replace(case, edit=replace(case.edit, id=f"{seed}-{case.edit.id}"))
            if world is own or asks[case.edit.prompt] not in own.facts:
                found.setdefault(asks[case.edit.prompt], (case, asks))
        seed += 1
    chosen = dict(list(found.items())[:n])
    return [
        replace(
            case,
            locality=tuple(
                probe for probe in case.locality if asks.get(probe.prompt) not in chosen
            ),
        )
        for case, asks in chosen.values()
    ]


def _truth(record: Record) -> set[str]:
    return _answers(record.get("answers") or record["ground_truth"])


def _edit(record: Record, prompt: str, target: str, name: str) -> Edit:
    return Edit(prompt, target, record["subject"] if record["subject"] in prompt else None, id=name)


def _zsre(record: Record, name: str) -> Case:
    probe = Probe(record["loc"], record["loc_ans"], "unrelated")
    return Case(_edit(record, record["src"], record["alt"], name), (record["rephrase"],), (probe,))


def _counterfact(record: Record, name: str) -> Case:
    probe = Probe(record["locality_prompt"], record["locality_ground_truth"], "neighbour")
    return Case(
        _edit(record, record["prompt"], record["target_new"], name),
        (record["rephrase_prompt"],),
        (probe,),
    )


def _knowedit(record: Record, name: str) -> Case:
    """Probes whose true answer is the edited fact's own ask the edited fact, and are left out."""
    own = _truth(record)
    probes = [probe for found in record["locality"].values() for probe in found]
    others = [probe for probe in probes if not own & _answers(probe["ground_truth"])]
    return Case(
        _edit(record, record["prompt"], record["target_new"], name),
        (record["rephrase_prompt"],),
        tuple(
            Probe(probe["prompt"], sorted(_answers(probe["ground_truth"]))[0], "same_subject")
            for probe in others
        ),
    )


def _answers(given: Any) -> set[str]:
    return (
        set().union(*(_answers(each) for each in given))
        if isinstance(given, list)
        else {str(given).lower()}
    )


_READERS = {"zsre": _zsre, "counterfact": _counterfact, "knowedit": _knowedit}
