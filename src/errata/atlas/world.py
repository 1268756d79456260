"""The invented world: its entities and their facts, all determined by one seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType

from errata.atlas import names
from errata.atlas.phrasings import HOPS, RELATIONS, Hop, Relation
from errata.errors import UsageError

WORLD_SEED = 7
"""The seed of the world that the bundled model has learned."""

COUNTS: Mapping[str, int] = MappingProxyType(
    {
        "country": 25, "city": 320, "person": 600, "company": 210, "work": 310,
        "landmark": 100, "institution": 50, "language": 18, "currency": 25,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Entity:
    """Something facts are about: its name, its type, and its kind (of a work: book, film, ...)."""

    name: str
    type: str
    kind: str


@dataclass(frozen=True)
class Fact:
    """`subject` has, under `relation`, the one answer `answer`."""

    subject: Entity
    relation: Relation
    answer: str

    @property
    def key(self) -> tuple[str, str]:
        """(subject's name, relation's name): what makes it this fact."""
        return self.subject.name, self.relation.name

    def prompts(self) -> list[str]:
        """Every way of asking for it."""
        return self.relation.prompts(self.subject.name, self.subject.kind)


@dataclass(frozen=True)
class TwoHop:
    """Two facts in a row: `second` of the answer of `first` of the subject."""

    hop: Hop
    first: Fact
    second: Fact

    @property
    def answer(self) -> str:
        """Where the two facts lead."""
        return self.second.answer

    def prompts(self) -> list[str]:
        """Every way of asking for it; only the first fact's subject is named."""
        return self.hop.prompts(self.first.subject.name, self.first.subject.kind)


@dataclass(frozen=True)
class World:
    """All entities by type and name, and all facts by (subject, relation)."""

    seed: int
    entities: Mapping[str, Mapping[str, Entity]]
    facts: Mapping[tuple[str, str], Fact]

    def fact(self, subject: str, relation: str) -> Fact:
        """The fact about `subject` under `relation`.

        Raises:
            UsageError: there is none.
        """
        try:
            return self.facts[subject, relation]
        except KeyError:
            raise UsageError(f"the world has no fact {relation!r} about {subject!r}.") from None

    def candidates(self, relation: Relation) -> list[str]:
        """Every answer of the right type for `relation`."""
        return answers_of_type(relation.object_type, self.entities)

    @cached_property
    def two_hops(self) -> tuple[TwoHop, ...]:
        """Every pair of facts that a `Hop` joins."""
        pairs = []
        for hop in HOPS:
            for fact in self.facts.values():
                if fact.relation.name == hop.first:
                    pairs.append(TwoHop(hop, fact, self.facts[fact.answer, hop.second]))
        return tuple(pairs)

    @cached_property
    def trained_two_hops(self) -> tuple[TwoHop, ...]:
        """The 70 % of the pairs that the bundled model learned; it can only compose the others."""
        rng = random.Random(f"two-hops {self.seed}")
        return tuple(pair for pair in self.two_hops if rng.random() < 0.7)


def answers_of_type(kind: str, entities: Mapping[str, Mapping[str, Entity]]) -> list[str]:
    """Every name or word of a type: an entity type, or a list of words such as the occupations."""
    words: dict[str, tuple[str, ...]] = {
        "occupation": names.OCCUPATIONS,
        "specialty": names.SPECIALTIES,
        "product": names.PRODUCTS,
        "genre": names.GENRES,
        "year": tuple(str(year) for year in range(1820, 1980)),
    }
    return list(words[kind]) if kind in words else list(entities[kind])


def _entities(rng: random.Random) -> dict[str, dict[str, Entity]]:
    namer = names.Namer(rng)
    made = {
        "country": namer.words(COUNTS["country"], "country"),
        "language": namer.words(COUNTS["language"], "language"),
        "currency": [word.lower() for word in namer.words(COUNTS["currency"], "currency")],
        "city": namer.words(COUNTS["city"]),
        "person": namer.people(COUNTS["person"]),
        "company": [
            f"{word} {rng.choice(names.COMPANY_FORMS)}" for word in namer.words(COUNTS["company"])
        ],
        "institution": [
            f"{w} {rng.choice(names.INSTITUTION_FORMS)}" for w in namer.words(COUNTS["institution"])
        ],
        "landmark": namer.words(COUNTS["landmark"]),
        "work": namer.titles(COUNTS["work"]),
    }
    kinds = {"landmark": names.LANDMARK_KINDS, "work": names.WORK_KINDS}
    return {
        type_: {name: Entity(name, type_, rng.choice(kinds.get(type_, (type_,)))) for name in given}
        for type_, given in made.items()
    }


def _draw(
    relation: Relation, rng: random.Random, entities: Mapping[str, Mapping[str, Entity]]
) -> list[str]:
    """One answer for every subject of `relation`; distinct ones where it is exclusive."""
    count = len(entities[relation.subject_type])
    pool = answers_of_type(relation.object_type, entities)
    if relation.exclusive:
        return rng.sample(pool, count)
    return [rng.choice(pool) for _ in range(count)]


@cache
def build_world(seed: int = WORLD_SEED) -> World:
    """The world of a seed: always the same one. The bundled model knows that of `WORLD_SEED`."""
    rng = random.Random(f"atlas {seed}")
    entities = _entities(rng)
    facts: dict[tuple[str, str], Fact] = {}
    for relation in RELATIONS:
        answers = _draw(relation, rng, entities)
        for entity, answer in zip(entities[relation.subject_type].values(), answers, strict=True):
            if relation.name == "country_capital":
                inside = [
                    c for c in entities["city"] if facts[c, "city_country"].answer == entity.name
                ]
                answer = rng.choice(inside) if inside else answer
            facts[entity.name, relation.name] = Fact(entity, relation, answer)
    return World(seed, MappingProxyType(entities), MappingProxyType(facts))
