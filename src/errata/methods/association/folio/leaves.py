"""`Leaves`: the edits of a Folio, and the choice of the one that answers a prompt.

How a leaf is chosen is told in `patch.py`. A *folio* is a group of leaves that one file holds, in
the order in which they were written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from errata.lm.background import names_in
from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.leaf import Candidate, EncodedPrompt, Leaf
from errata.methods.association.folio.question_reader import QuestionReader, asked_of
from errata.patches.routed import MAIN
from errata.words.names import NameIndex
from errata.words.parts import words

SURE, AGREE = 0.3, 0.5
"""The probability of the first token from which the base model is sure of it; and the overlap of
two distributions of it, sum_t sqrt(p_t q_t), from which they are of one answer.
"""
PROMPT_END, PADDING = -1, -2
"""Stand for a token id: the end of the prompt; a row that pads a leaf."""


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
        self._padded: tuple[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] | None = None

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
        self._mentions.add(number, leaf.subject, leaf.prompt)
        self._padded = None
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
        self._padded = None
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
        asked = [
            {number: asked_of(prompt.text, self._leaves[number].subject) for number in mentioned}
            for prompt, mentioned in zip(prompts, overlaps, strict=True)
        ]
        texts = list(dict.fromkeys(text for each in asked for text in each.values()))
        vectors = dict(zip(texts, self._reader.vectors(texts, self.calibration.space), strict=True))
        return [
            self._ranked(prompt, mentioned, texts_of, vectors)
            for prompt, mentioned, texts_of in zip(prompts, overlaps, asked, strict=True)
        ]

    def _ranked(
        self,
        prompt: EncodedPrompt,
        overlaps: Mapping[int, float],
        asked: Mapping[int, str],
        vectors: Mapping[str, Tensor],
    ) -> list[Candidate]:
        """Return the leaves that a prompt may ask for, the best first.

        Args:
            prompt: the prompt.
            overlaps: leaf -> the share of its subject that the prompt mentions.
            asked: leaf -> the part of the prompt that asks of its subject.
            vectors: part of a prompt -> what it asks, (dimensions,).
        """
        if not overlaps:
            return []
        leaves = [self._leaves[number] for number in overlaps]
        found = torch.stack([vectors[text] for text in asked.values()])
        stored = torch.stack([leaf.question for leaf in leaves]).to(found)
        scores = self.calibration.space.scores(found, stored).tolist()
        predictions = self._predictions(prompt, leaves)
        candidates = []
        for number, leaf, score, prediction in zip(
            overlaps, leaves, scores, predictions, strict=True
        ):
            own = asked[number] == asked_of(leaf.prompt, leaf.subject)
            signs = (1.0, 1) if own else (score, prediction)
            candidates.append(Candidate(number, leaf.edit_id, overlaps[number], *signs))
        return sorted(candidates, key=lambda each: (each.score, each.number), reverse=True)

    def _predictions(self, prompt: EncodedPrompt, leaves: Sequence[Leaf]) -> list[int]:
        """Say for each leaf whether its own prompt's answer begins like the prompt's, see
        `Candidate`.

        A beginning that many prompts share, or that repeats the prompt, says nothing.
        """
        if prompt.key is None:
            return [0] * len(leaves)
        keys = torch.stack([prompt.key.float(), *(leaf.keys[0].to(prompt.key) for leaf in leaves)])
        log_probs = self._reader.base.log_probs(keys)
        best = log_probs.max(-1)
        sure = best.values >= math.log(SURE)
        overlaps = (0.5 * (log_probs[0] + log_probs[1:])).exp().sum(-1)
        token = int(best.indices[0])
        said = self._reader.lm.decode([token]).strip()
        empty = token in self.calibration.generic or token in prompt.ids or said in prompt.text
        both = (sure[0] & sure[1:]).tolist()
        return [
            0 if not known or (overlap >= AGREE and empty) else 1 if overlap >= AGREE else -1
            for known, overlap in zip(both, overlaps.tolist(), strict=True)
        ]

    def winner(self, candidates: Sequence[Candidate]) -> int:
        """Return the number of the leaf that answers, of a prompt's candidates, or `MAIN`."""
        best = candidates[0] if candidates else None
        number = best.number if best and best.score >= self.calibration.threshold else MAIN
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
                if names <= set(words(self._leaves[number].prompt))
            }
            if overlaps:
                return overlaps
            names |= {word for name in names_in(text) for word in words(name)}
        return {}

    def padded(self, numbers: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Stack leaves on the model's device, padded to the longest answer.

        The last result is kept, since each token of an answer asks for the same leaves.

        Returns:
            The token that each value follows (leaves, n), `PROMPT_END` for the first and `PADDING`
            behind the last; whitened keys (leaves, n, hidden); values (leaves, n, hidden) in fp32.
        """
        kept = self._padded  # read once: another thread may replace it
        if kept is not None and kept[0] == numbers:
            return kept[1]
        leaves, device = [self._leaves[n] for n in numbers], self.calibration.center.device
        before = [torch.tensor([PROMPT_END, *leaf.tokens[:-1]], device=device) for leaf in leaves]
        keys = [self.calibration.whiten(leaf.keys.to(device)) for leaf in leaves]
        values = [leaf.values.to(device, torch.float32) for leaf in leaves]
        tensors = (
            pad_sequence(before, batch_first=True, padding_value=PADDING),
            pad_sequence(keys, batch_first=True),
            pad_sequence(values, batch_first=True),
        )
        self._padded = numbers, tensors
        return tensors
