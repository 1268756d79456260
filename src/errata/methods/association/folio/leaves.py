"""`Leaves`: the edits of a Folio, and the choice of the one that answers a prompt.

How a leaf is chosen is told in `patch.py`. A *folio* is a group of leaves that one file holds, in
the order in which they were written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.leaf import Candidate, EncodedPrompt, Leaf
from errata.methods.association.folio.mention import Match, Mention
from errata.methods.association.folio.question_reader import LAST, Question, QuestionReader
from errata.methods.association.folio.withholding import Spelling, spellings
from errata.patches.routed import MAIN
from errata.words.names import NameIndex, names_in
from errata.words.parts import words
from errata.words.questions import without_labels

SURE, AGREE = 0.3, 0.5
"""The probability of the first token from which the base model is sure of it; and the overlap of
two distributions of it, sum_t sqrt(p_t q_t), from which they are of one answer.
"""
MAX_READ = 8
"""Facts that are read at once, at most: those whose questions are the nearest."""
MAX_KEPT = 1024
"""Prompts whose mentions are kept, at most."""


class Leaves:
    """Leaves by number, grouped into folios. Of two that answer one question the later counts.

    Args:
        reader: reads what prompts ask.
        min_subject_overlap: share of an edit's subject that a prompt must mention.
        calibration: statistics of background text.
        edits_per_file: leaves in one folio.
    """

    def __init__(
        self,
        reader: QuestionReader,
        min_subject_overlap: float,
        calibration: RouterCalibration,
        edits_per_file: int,
    ) -> None:
        self.calibration = calibration
        self._reader = reader
        self._edits_per_file = edits_per_file
        self._leaves: dict[int, Leaf] = {}
        self._folios: dict[int, list[int]] = {}
        self._folio_of: dict[int, int] = {}
        self._mentions = NameIndex(calibration.weights, min_subject_overlap)
        self._superseded_by: dict[int, set[int]] = {}
        self._matched: dict[tuple[str, tuple[str, ...]], list[Match]] = {}
        self._spelled: dict[int, list[Spelling]] = {}

    def __len__(self) -> int:
        return len(self._leaves)

    def __iter__(self) -> Iterator[Leaf]:
        return iter(self._leaves.values())

    def __getitem__(self, number: int) -> Leaf:
        return self._leaves[number]

    @property
    def folios(self) -> dict[int, list[int]]:
        """Folio -> the numbers of its leaves, both ascending."""
        return self._folios

    def folio_of(self, number: int) -> int:
        """Return the folio that a leaf is in."""
        return self._folio_of[number]

    def add(
        self, number: int, leaf: Leaf, supersedes: Sequence[int] = (), folio: int | None = None
    ) -> None:
        """Store a leaf.

        Args:
            number: a new number, larger than those of the leaves it supersedes.
            leaf: the leaf.
            supersedes: earlier leaves that answer the same question otherwise.
            folio: where the leaf goes; None: into the last folio, or a new one if that is full.
        """
        if folio is None:
            folio = max(self._folios, default=0)
            folio += len(self._folios.get(folio, ())) >= self._edits_per_file
        self._folios.setdefault(folio, []).append(number)
        self._folio_of[number] = folio
        self._leaves[number] = leaf
        self._matched = {}  # another one: other threads may be reading this one
        self._mentions.add(number, leaf.subject, leaf.edit.prompt)
        for alias in leaf.edit.aliases:
            self._mentions.add(number, alias)
        if leaf.withheld:
            self._spelled[number] = spellings(self._reader.lm, leaf.withheld)
        for earlier in supersedes:
            self._superseded_by.setdefault(earlier, set()).add(number)

    def remove(self, number: int) -> None:
        """Remove a leaf; those that it superseded answer again.

        Raises:
            KeyError: there is no such leaf.
        """
        del self._leaves[number]
        self._spelled.pop(number, None)
        self._matched = {}
        folio = self._folio_of.pop(number)
        self._folios[folio].remove(number)
        if not self._folios[folio]:
            del self._folios[folio]
        self._mentions.remove(number)
        self._superseded_by.pop(number, None)
        for later in self._superseded_by.values():
            later.discard(number)

    def superseded_by(self) -> dict[int, list[int]]:
        """Return, for each leaf that is superseded, the later leaves that answer in its place."""
        return {number: sorted(later) for number, later in self._superseded_by.items() if later}

    def choose(self, prompts: Sequence[EncodedPrompt]) -> list[int]:
        """Return the number of the leaf that answers each prompt, or `MAIN`."""
        found = self.candidates(prompts, self.calibration.threshold)
        return [self.winner(candidates) for candidates in found]

    def candidates(
        self, prompts: Sequence[EncodedPrompt], threshold: float = 0.0
    ) -> list[list[Candidate]]:
        """Return, for each prompt, the leaves whose subject it mentions.

        The best score comes first; of equal scores, the later leaf.

        Args:
            prompts: the prompts.
            threshold: what the base model predicts is looked at for those leaves alone whose score
                may reach it.
        """
        found = []
        for prompt, matches in zip(prompts, self._matches(prompts), strict=True):
            open_ones = [m for m in matches if not m.is_own and m.best.score >= threshold]
            leaves = [match.mention.leaf for match in open_ones]
            numbers = [match.mention.number for match in open_ones]
            predicted = dict(zip(numbers, self._predictions(prompt, leaves), strict=True))
            candidates = [m.predicted(predicted.get(m.mention.number, 0)) for m in matches]
            found.append(sorted(candidates, key=lambda c: (c.score, c.number), reverse=True))
        return found

    def _matches(self, prompts: Sequence[EncodedPrompt]) -> list[list[Match]]:
        """Return the leaves that each prompt mentions; what was found stays until leaves change."""
        kept = self._matched
        if len(kept) > MAX_KEPT:
            kept = self._matched = {}
        keys = [(prompt.text, prompt.earlier) for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in kept}
        kept |= zip(new, self._match(list(new.values())), strict=True)
        return [kept[key] for key in keys]

    def _match(self, prompts: Sequence[EncodedPrompt]) -> list[list[Match]]:
        found: list[list[Match]] = [[] for _ in prompts]
        mentions = {
            row: [
                Mention.of(prompt.text, number, self[number], share, self[self._latest(number)])
                for number, share in overlaps.items()
            ]
            for row, prompt in enumerate(prompts)
            if (overlaps := self.subject_overlaps(prompt))
        }
        if not mentions:
            return found
        whole = [Question(without_labels(prompts[row].text)) for row in mentions]
        asked = [
            part for row in mentions for each in mentions[row] for part in (each.asked, each.about)
        ]
        views = self._reader.read([*whole, *asked])
        odds = self.calibration.intents.odds(torch.stack([views[each][LAST] for each in whole]))
        space = self.calibration.space
        stored = torch.stack([each.leaf.question for row in mentions for each in mentions[row]])
        scores = space.scores(
            space.vectors(torch.stack([views[part] for part in asked])),
            stored.to(space.center).repeat_interleave(2, 0),
            torch.tensor(
                [form for row in mentions for each in mentions[row] for form in each.forms]
            ).to(space.center),
        )
        same = iter(scores.view(-1, 2).tolist())
        for (row, part), likely in zip(mentions.items(), odds.tolist(), strict=True):
            found[row] = [each.match(next(same), likely) for each in part]
        return found

    def to_read(self, prompts: Sequence[EncodedPrompt]) -> list[list[int]]:
        """Return the numbers of the leaves whose facts each prompt is answered with, the best last.

        There are none where one of the leaves answers. It is decided before the base model reads
        the prompts, so what it predicts does not count.
        """
        found = []
        for candidates in self.candidates(prompts):
            numbers: list[int] = []
            if self.winner(candidates) == MAIN:
                ranked = sorted(candidates, key=lambda each: (each.same_question, each.number))
                numbers = [self._latest(each.number) for each in ranked if each.is_read]
            found.append(list(dict.fromkeys(reversed(numbers)))[:MAX_READ][::-1])
        return found

    @property
    def withholds(self) -> bool:
        """Whether there is a leaf that withholds something."""
        return bool(self._spelled)

    def withheld(self, prompts: Sequence[EncodedPrompt]) -> list[tuple[int, ...]]:
        """Return the numbers of the leaves whose erased facts are withheld from each prompt: those
        whose subject it mentions, unless a later edit answers their question.
        """
        if not self._spelled:
            return [()] * len(prompts)
        return [
            tuple(
                number
                for number in sorted(self.subject_overlaps(prompt))
                if number in self._spelled and self._latest(number) in self._spelled
            )
            for prompt in prompts
        ]

    def spelled(self, numbers: Sequence[int]) -> list[Spelling]:
        """Return how what leaves withhold may be spelled."""
        return [ids for number in numbers for ids in self._spelled[number]]

    def _predictions(self, prompt: EncodedPrompt, leaves: Sequence[Leaf]) -> list[int]:
        """Say for each leaf whether its own prompt's answer begins like the prompt's, see
        `Candidate`.

        A beginning that many prompts share, or that repeats the prompt, says nothing.
        """
        if prompt.key is None or not leaves:
            return [0] * len(leaves)
        base = self._reader.base
        here = base.log_probs(prompt.key.float()[None])[0]
        asked = int(here.argmax())
        if here[asked] < math.log(SURE) or self._says_nothing(asked, prompt.text, prompt.ids):
            return [0] * len(leaves)
        there = base.log_probs(torch.stack([leaf.key.to(prompt.key).float() for leaf in leaves]))
        best = there.max(-1)
        overlaps = (0.5 * (here + there)).exp().sum(-1)
        found = []
        for leaf, token, sure, overlap in zip(
            leaves,
            best.indices.tolist(),
            (best.values >= math.log(SURE)).tolist(),
            overlaps.tolist(),
            strict=True,
        ):
            silent = overlap < AGREE and self._says_nothing(token, leaf.edit.prompt)
            found.append(0 if silent or not sure else 1 if overlap >= AGREE else -1)
        return found

    def _says_nothing(self, token: int, prompt: str, ids: Sequence[int] = ()) -> bool:
        """Whether many prompts' answers begin with a token, or the prompt has it."""
        if token in ids or token in self.calibration.generic:
            return True
        return self._reader.lm.decode([token]).strip() in prompt

    def winner(self, candidates: Sequence[Candidate]) -> int:
        """Return the number of the leaf that answers, of a prompt's candidates, or `MAIN`."""
        best = candidates[0] if candidates else None
        if best is None or best.score < self.calibration.threshold:
            return MAIN
        return self._latest(best.number)

    def _latest(self, number: int) -> int:
        while self._superseded_by.get(number):
            number = max(self._superseded_by[number])
        return number

    def subject_overlaps(self, prompt: EncodedPrompt) -> dict[int, float]:
        """Return the leaves whose subject a prompt mentions: number -> share, by word weight.

        In a conversation the last question counts. Where it mentions no subject, the question
        before it may, unless names have come up since that the leaf's own prompt lacks: "and when
        was it built?" goes on with that subject, "and Tamis?" does not.
        """
        names: set[str] = set()
        for text in (prompt.text, *prompt.earlier):
            overlaps = {
                number: share
                for number, share in self._mentions.find(text).items()
                if names <= set(words(self._leaves[number].edit.prompt))
            }
            if overlaps:
                return overlaps
            names |= {word for name in names_in(text) for word in words(name)}
        return {}
