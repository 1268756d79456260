"""`Leaves`: the edits of a Folio, and the choice of the one that answers a prompt.

How a leaf is chosen is told in `patch.py`. A *folio* is a group of leaves that one file holds, in
the order in which they were written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.intents import DESCRIBE, READ
from errata.methods.association.folio.leaf import Candidate, EncodedPrompt, Leaf
from errata.methods.association.folio.question_reader import LAST, QuestionReader
from errata.patches.routed import MAIN
from errata.words.names import NameIndex, names_in
from errata.words.parts import words
from errata.words.questions import asked_of, in_quotes, question_in, with_subject, without_labels

SURE, AGREE = 0.3, 0.5
"""The probability of the first token from which the base model is sure of it; and the overlap of
two distributions of it, sum_t sqrt(p_t q_t), from which they are of one answer.
"""
READ_FROM = 0.3
"""How surely the question that is to be verified or chosen for is the edit's, for its fact to be
read.
"""
MAX_READ = 8
"""Facts that are read at once, at most: those whose questions are the nearest."""


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
        self._mentions.add(number, leaf.subject, leaf.edit.prompt)
        for alias in leaf.edit.aliases:
            self._mentions.add(number, alias)
        for earlier in supersedes:
            self._superseded_by.setdefault(earlier, set()).add(number)

    def remove(self, number: int) -> None:
        """Remove a leaf; those that it superseded answer again.

        Raises:
            KeyError: there is no such leaf.
        """
        del self._leaves[number]
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
        return [self.winner(candidates) for candidates in self.candidates(prompts)]

    def candidates(self, prompts: Sequence[EncodedPrompt]) -> list[list[Candidate]]:
        """Return, for each prompt, the leaves whose subject it mentions.

        The best score comes first; of equal scores, the later leaf.
        """
        overlaps = [self.subject_overlaps(prompt) for prompt in prompts]
        mentioning = [
            (prompt, {self._named(prompt, number) for number in found})
            for prompt, found in zip(prompts, overlaps, strict=True)
            if found
        ]
        texts = [without_labels(prompt.text) for prompt, _ in mentioning]
        for _, named in mentioning:
            texts += [part(*each) for part in (asked_of, question_in) for each in named]
        states = self._reader.read(texts)
        return [
            self._ranked(prompt, found, states) if found else []
            for prompt, found in zip(prompts, overlaps, strict=True)
        ]

    def _ranked(
        self, prompt: EncodedPrompt, overlaps: Mapping[int, float], states: Mapping[str, Tensor]
    ) -> list[Candidate]:
        """Return the leaves that a prompt may ask for, the best first.

        Args:
            prompt: the prompt.
            overlaps: leaf -> the share of its subject that the prompt mentions.
            states: part of a prompt -> its views, (views, hidden).
        """
        leaves, calibration = [self._leaves[number] for number in overlaps], self.calibration
        odds = calibration.intents.odds(states[without_labels(prompt.text)][LAST][None])[0].tolist()
        intent = max(range(len(odds)), key=odds.__getitem__)
        named = [self._named(prompt, number) for number in overlaps]
        asked = [asked_of(*each) for each in named]
        questions = [question_in(*each) for each in named]
        stored = torch.stack([leaf.question for leaf in leaves]).to(calibration.space.center)
        scores, about = (
            calibration.space.scores(
                calibration.space.vectors(torch.stack([states[text] for text in texts])), stored
            ).tolist()
            for texts in (asked, questions)
        )
        predictions = self._predictions(prompt, leaves)
        candidates = []
        for place, (number, leaf) in enumerate(zip(overlaps, leaves, strict=True)):
            own = asked_of(leaf.edit.prompt, leaf.subject)
            same = [(about[place], questions[place] == own), (scores[place], asked[place] == own)]
            if in_quotes(*named[place]) is None:  # else 'The answer to "..." is'
                del same[0]
            is_own = any(equal for _, equal in same)
            prediction = predictions[place]
            if named[place][0] != prompt.text:  # the base model may not know the alias
                prediction = max(prediction, 0)
            is_about = questions[place] == own or about[place] >= READ_FROM
            candidates.append(
                Candidate(
                    number,
                    leaf.edit.id,
                    overlaps[number],
                    1.0 if is_own else max(score for score, _ in same),
                    intent,
                    odds[leaf.intent],
                    1 if is_own else prediction,
                    intent in READ and (intent == DESCRIBE or is_about),
                )
            )
        return sorted(candidates, key=lambda each: (each.score, each.number), reverse=True)

    def _named(self, prompt: EncodedPrompt, number: int) -> tuple[str, str]:
        """Return a prompt with a leaf's subject in the place of its aliases, and the subject."""
        leaf = self._leaves[number]
        return with_subject(prompt.text, leaf.subject, leaf.edit.aliases), leaf.subject

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

    def _predictions(self, prompt: EncodedPrompt, leaves: Sequence[Leaf]) -> list[int]:
        """Say for each leaf whether its own prompt's answer begins like the prompt's, see
        `Candidate`.

        A beginning that many prompts share, or that repeats the prompt, says nothing.
        """
        if prompt.key is None:
            return [0] * len(leaves)
        keys = torch.stack([prompt.key.float(), *(leaf.key.to(prompt.key) for leaf in leaves)])
        log_probs = self._reader.base.log_probs(keys)
        best = log_probs.max(-1)
        sure = best.values >= math.log(SURE)
        overlaps = (0.5 * (log_probs[0] + log_probs[1:])).exp().sum(-1)
        asked, *own = best.indices.tolist()
        empty = asked in prompt.ids or self._says_nothing(asked, prompt.text)
        found = []
        for leaf, token, both, overlap in zip(
            leaves, own, (sure[0] & sure[1:]).tolist(), overlaps.tolist(), strict=True
        ):
            silent = empty or (overlap < AGREE and self._says_nothing(token, leaf.edit.prompt))
            found.append(0 if silent or not both else 1 if overlap >= AGREE else -1)
        return found

    def _says_nothing(self, token: int, prompt: str) -> bool:
        """Whether many prompts' answers begin with a token, or the prompt has it."""
        said = self._reader.lm.decode([token]).strip()
        return token in self.calibration.generic or said in prompt

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
