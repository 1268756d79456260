"""Cases made from the invented world: edits, with the rephrasings and probes that judge them.

No two edits contradict each other, and no probe asks for a fact that another edit of the same list
changes: one fact of every subject is never edited, and locality and two-hop probes use unedited
facts only.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable

from errata.atlas.world import Fact, World, build_world
from errata.cases import Case, Probe
from errata.config import check_seed
from errata.edit import Edit
from errata.errors import UsageError

REPHRASES = 3
PORTABILITY = 2

Key = tuple[str, str]


def _editable(world: World) -> list[Fact]:
    """All facts but one of every subject, which stays unedited."""
    by_subject: dict[str, list[Fact]] = defaultdict(list)
    for fact in world.facts.values():
        by_subject[fact.subject.name].append(fact)
    out = []
    for place, facts in enumerate(by_subject.values()):
        kept = place % len(facts)
        out += [fact for index, fact in enumerate(facts) if index != kept]
    return out


class _Writer:
    """Writes the cases of one list; knows which facts the list edits."""

    def __init__(self, world: World, edited: Iterable[Fact], rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.edited = {fact.key for fact in edited}
        self.stable = [fact for fact in world.facts.values() if fact.key not in self.edited]
        self.stable_by_relation: dict[str, list[Fact]] = defaultdict(list)
        self.stable_by_subject: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.stable:
            self.stable_by_relation[fact.relation.name].append(fact)
            self.stable_by_subject[fact.subject.name].append(fact)
        self.hops_from: dict[Key, list[int]] = defaultdict(list)
        self.hops_to: dict[Key, list[int]] = defaultdict(list)
        for index, pair in enumerate(world.two_hops):
            self.hops_from[pair.first.key].append(index)
            self.hops_to[pair.second.key].append(index)

    def _ask(self, fact: Fact, kind: str) -> Probe:
        return Probe(self.rng.choice(fact.prompts()), fact.answer, kind)

    def locality(self, fact: Fact) -> tuple[Probe, ...]:
        """One probe of every kind, each about a fact that stays."""
        neighbours = [
            f for f in self.stable_by_relation[fact.relation.name] if f.subject != fact.subject
        ]
        while True:
            unrelated = self.rng.choice(self.stable)
            if unrelated.relation != fact.relation and unrelated.subject != fact.subject:
                break
        return (
            self._ask(unrelated, "unrelated"),
            self._ask(self.rng.choice(neighbours), "neighbour"),
            self._ask(self.rng.choice(self.stable_by_subject[fact.subject.name]), "same_subject"),
        )

    def portability(self, fact: Fact, target: str) -> tuple[Probe, ...]:
        """Two-hop questions whose answer the edit changes, from its new answer or leading to it."""
        probes = []
        for index in self.hops_from[fact.key]:
            pair = self.world.two_hops[index]
            onward = (target, pair.hop.second)
            if onward not in self.edited and self.world.facts[onward].answer != pair.answer:
                probes.append(
                    Probe(self.rng.choice(pair.prompts()), self.world.facts[onward].answer, "hop")
                )
        for index in self.rng.sample(self.hops_to[fact.key], len(self.hops_to[fact.key])):
            pair = self.world.two_hops[index]
            if pair.first.key not in self.edited:
                probes.append(Probe(self.rng.choice(pair.prompts()), target, "hop"))
        return tuple(probes[:PORTABILITY])

    def case(self, fact: Fact, number: int) -> Case:
        """The case that gives `fact` another answer of the right type."""
        others = [name for name in self.world.candidates(fact.relation) if name != fact.answer]
        target = self.rng.choice(others)
        prompt, *rephrases = self.rng.sample(fact.prompts(), 1 + REPHRASES)
        return Case(
            edit=Edit(prompt, target, fact.subject.name, "modify", f"atlas-{number:05d}"),
            rephrases=tuple(rephrases),
            locality=self.locality(fact),
            portability=self.portability(fact, target),
        )


def training_cases(
    n: int, apart_from: Iterable[Case], seed: int = 1, world: World | None = None
) -> list[Case]:
    """Up to `n` cases for training a method, with no fact that the given cases edit."""
    world = world or build_world()
    fact_of = {prompt: fact.key for fact in world.facts.values() for prompt in fact.prompts()}
    taken = {fact_of[case.edit.prompt] for case in apart_from if case.edit.prompt in fact_of}
    drawn = make_cases(min(max_cases(world), n + len(taken)), seed, world)
    return [case for case in drawn if fact_of[case.edit.prompt] not in taken][:n]


def max_cases(world: World | None = None) -> int:
    """How many cases one list can hold without contradicting itself."""
    return len(_editable(world or build_world()))


def make_cases(n: int, seed: int = 0, world: World | None = None) -> list[Case]:
    """Make `n` cases about the bundled model's world, determined by `n` and `seed`.

    Raises:
        UsageError: `n` is below 1 or beyond what the world holds, or `seed` is none.
    """
    check_seed(seed)
    world = world or build_world()
    editable = _editable(world)
    if not 1 <= n <= len(editable):
        raise UsageError(
            f"n is {n}; it is from 1 to {len(editable)}, the facts that can be edited at once."
        )
    rng = random.Random(f"cases {world.seed} {n} {seed}")
    chosen = rng.sample(editable, n)
    writer = _Writer(world, chosen, rng)
    return [writer.case(fact, number) for number, fact in enumerate(chosen, start=1)]
