"""Writes contexts: facts stated beside a question, to teach a model to read and to measure it.

A stated fact mostly contradicts what the model knows. Asked for it (`copy`: in the stated words,
`update`: in others), the right answer is the stated one; asked for anything else (`neighbour`,
`same_subject`, `unrelated`), the world's.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

from errata.atlas.world import Fact, World

READ_KINDS = ("copy", "update")
KEEP_KINDS = ("neighbour", "same_subject", "unrelated")
FACTS = (1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 6, 6, 8, 10, 12)
"""How many facts a full-grown context states: one of these."""
DEMONSTRATIONS = (1, 2, 3, 4, 4, 6, 8)
"""How many demonstrations stand before the fact, where there are any."""
CONTRADICTED = 0.9
"""The share of stated facts that the world contradicts."""
QUESTIONS = 6
"""How many questions share one context of the lessons."""
FIRST_WEIGHTS = (0.5, 0.25, 0.08, 0.08, 0.08)
GROWN_WEIGHTS = (0.1, 0.4, 0.34, 0.08, 0.08)
"""How often each kind is asked in the lessons, of the first contexts and of others. Neighbours are
the hardest to keep: only the subject's name tells them from what is stated."""


@dataclass(frozen=True)
class Line:
    """A line of a context: prompt, answer, kind (`stated`, or a question's), and how it ends."""

    prompt: str
    answer: str
    kind: str
    end: str = ""

    @property
    def before(self) -> str:
        """What stands before the answer."""
        return f"{'New Fact' if self.kind == 'stated' else 'Prompt'}: {self.prompt}"

    @property
    def text(self) -> str:
        """The whole line."""
        return f"{self.before} {self.answer}.{self.end}"


@dataclass(frozen=True)
class Context:
    """Lines to read, the last `stated` of them facts, and questions to ask alone after them."""

    lines: tuple[Line, ...]
    questions: tuple[Line, ...]
    stated: int
    demonstrations: int

    @property
    def text(self) -> str:
        """What stands before a question."""
        return "".join(line.text for line in self.lines)


@dataclass(frozen=True)
class Stated:
    """A fact as a context states it, mostly with an answer that the world contradicts."""

    fact: Fact
    prompt: str
    answer: str

    @property
    def line(self) -> Line:
        """As the context says it."""
        return Line(self.prompt, self.answer, "stated", "\n")


class ContextWriter:
    """Writes contexts about a world, from one random stream."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.facts = list(world.facts.values())
        self.by_relation: dict[str, list[Fact]] = defaultdict(list)
        self.by_subject: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            self.by_relation[fact.relation.name].append(fact)
            self.by_subject[fact.subject.name].append(fact)
        self.candidates = {
            facts[0].relation.name: world.candidates(facts[0].relation)
            for facts in self.by_relation.values()
        }

    def _state(self, fact: Fact) -> Stated:
        answer = fact.answer
        if self.rng.random() < CONTRADICTED:
            while answer == fact.answer:
                answer = self.rng.choice(self.candidates[fact.relation.name])
        return Stated(fact, self.rng.choice(fact.prompts()), answer)

    def _stated(self, count: int) -> list[Stated]:
        """Draw one context's facts: some share a subject or a relation, so reading needs care."""
        chosen: dict[tuple[str, str], Fact] = {}
        while len(chosen) < count:
            fact, near = self.rng.choice(self.facts), self.rng.random()
            if chosen and near < 0.85:
                other = self.rng.choice(list(chosen.values()))
                same = (
                    self.by_subject[other.subject.name]
                    if near < 0.1
                    else self.by_relation[other.relation.name]
                )
                fact = self.rng.choice(same)
            chosen[fact.key] = fact
        out = [self._state(fact) for fact in chosen.values()]
        self.rng.shuffle(out)
        return out

    def _other(self, kind: str, stated: list[Stated]) -> Fact:
        """Draw a fact that the context does not state, a near one of the kind if there is any."""
        keys = {one.fact.key for one in stated}
        one = self.rng.choice(stated).fact
        if kind == "same_subject":
            near = [fact for fact in self.by_subject[one.subject.name] if fact.key not in keys]
            if near:
                return self.rng.choice(near)
        while True:
            fact = self.rng.choice(
                self.by_relation[one.relation.name] if kind == "neighbour" else self.facts
            )
            related = any(
                fact.subject == s.fact.subject or fact.relation == s.fact.relation for s in stated
            )
            if fact.key not in keys and (kind != "unrelated" or not related):
                return fact

    def question(self, kind: str, stated: list[Stated], end: str = "") -> Line:
        """A question of a kind, after the stated facts."""
        if kind in READ_KINDS:
            one = self.rng.choice(stated)
            others = [prompt for prompt in one.fact.prompts() if prompt != one.prompt]
            prompt = one.prompt if kind == "copy" else self.rng.choice(others)
            return Line(prompt, one.answer, kind, end)
        fact = self._other(kind, stated)
        return Line(self.rng.choice(fact.prompts()), fact.answer, kind, end)

    def demonstration(self) -> tuple[Line, Line]:
        """Make a fact and a question: the same (copy), reworded (update) or another (retain)."""
        stated = self._stated(1)
        kind = self.rng.choice((*READ_KINDS, "retain"))
        kind = self.rng.choice(KEEP_KINDS) if kind == "retain" else kind
        return stated[0].line, self.question(kind, stated, "\n\n")

    def context(self, facts: int, demonstrations: int, kinds: list[str]) -> Context:
        """So many demonstrations, then so many stated facts, and a question of every kind given."""
        lines = [line for _ in range(demonstrations) for line in self.demonstration()]
        stated = self._stated(facts)
        lines += [one.line for one in stated]
        return Context(
            tuple(lines),
            tuple(self.question(kind, stated) for kind in kinds),
            facts,
            demonstrations,
        )

    def lesson(self, growth: float) -> Context:
        """Make a context to learn from: from growth 0 (one fact, mostly copied) to 1 (all)."""
        demonstrations, largest = 0, 1 + round(growth * (max(FACTS) - 1))
        if growth:
            if self.rng.random() < 0.1:
                demonstrations, largest = self.rng.choice(DEMONSTRATIONS), 2
            elif self.rng.random() < 0.15:
                largest = max(largest, 8)
        weights = GROWN_WEIGHTS if growth else FIRST_WEIGHTS
        kinds = self.rng.choices((*READ_KINDS, *KEEP_KINDS), weights, k=QUESTIONS)
        return self.context(min(self.rng.choice(FACTS), largest), demonstrations, kinds)
