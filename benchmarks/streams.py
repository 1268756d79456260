"""Makes streams of cases: of published files, and large ones about the world of atlas."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from errata import Case, Probe
from errata.atlas import make_cases
from errata.atlas.cases import max_cases
from errata.atlas.world import build_world
from errata.bench.task import find_task, load

TASKS = {"zsre": "zsre", "counterfact": "counterfact", "knowedit": "knowedit-zsre"}
"""The published files: what they are called here, and as tasks of `errata bench`."""


def published(folder: Path, name: str, conflict_free: bool = False) -> list[Case]:
    """Read a published file as cases, without same-subject probes that ask the edited fact itself.

    Args:
        folder: where the file is.
        name: one of `TASKS`.
        conflict_free: leave out records that contradict another: of the same subject and true
            answer, with another target; and locality probes that ask what a record edits: they
            mention its subject and have its true answer.
    """
    data = load(find_task(TASKS[name]), folder)
    targets: dict[tuple[str | None, frozenset[str]], set[str]] = defaultdict(set)
    subjects: dict[str, set[str]] = defaultdict(set)
    truths = [frozenset(text.lower() for text in case.truth) for case in data.cases]
    for case, truth in zip(data.cases, truths, strict=True):
        targets[case.edit.subject, truth].add(case.edit.target)
        for answer in truth if case.edit.subject else ():
            subjects[answer].add(case.edit.subject)

    def asks_own_fact(probe: Probe, truth: frozenset[str]) -> bool:
        return probe.kind == "same_subject" and bool(
            truth & {a.lower() for a in (probe.answer or "", *probe.also)}
        )

    def asks_another(probe: Probe) -> bool:
        return any(subject in probe.prompt for subject in subjects[(probe.answer or "").lower()])

    found = []
    for case, truth in zip(data.cases, truths, strict=True):
        if not conflict_free or len(targets[case.edit.subject, truth]) == 1:
            probes = [probe for probe in case.locality if not asks_own_fact(probe, truth)]
            probes = [probe for probe in probes if not (conflict_free and asks_another(probe))]
            found.append(replace(case, locality=tuple(probes), portability=()))
    return found


def without_subject(cases: Iterable[Case]) -> list[Case]:
    """The same cases with edits that do not name their subject."""
    return [replace(case, edit=replace(case.edit, subject=None)) for case in cases]


def drawn_again(n: int) -> list[Case]:
    """Make `n` cases about the facts of atlas, drawn again with new answers as often as needed.

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
    """Make `n` cases about different facts: of the world that atlas knows, then of other worlds.

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
