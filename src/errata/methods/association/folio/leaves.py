"""`Leaves`: the edits of a Folio, and which of them a prompt asks for. See `patches.folio` for the
two signs.

A *folio* is so many leaves, in the order in which they came, and what is kept together on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.lm.background import names_in
from errata.methods.association.folio.base_head import BaseHead
from errata.patches.routed import MAIN
from errata.words.names import NameIndex, WordWeights
from errata.words.parts import words

START, PADDING = -1, -2
"""In the place of a token: the prompt's end; no value."""
MOST = 16
"""Leaves that are compared by what the base model expects; of more, those whose keys are nearest.
"""


@dataclass(frozen=True)
class Leaf:
    """One edit.

    Attributes:
        name: the edit's id.
        prompt: what it was asked.
        subject: what a prompt must mention.
        target: the answer.
        lead: tokens that the base model says before it tells what it knows; mostly none.
        sign: (hidden,), the head's input behind prompt and lead.
        tokens: the answer's n tokens, its end included.
        keys: (n, hidden), the head's inputs where they are predicted, the prompt's last token
            first.
        values: (n, hidden), what is to be added there, gain included.

    The tensors are in the machine's own memory, or mapped into it from disk; where the model is
    elsewhere, what is asked for is brought there.
    """

    name: str
    prompt: str
    subject: str
    target: str
    lead: tuple[int, ...]
    sign: Tensor
    tokens: tuple[int, ...]
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class RouterCalibration:
    """What is known of text that no edit is about.

    Attributes:
        weights: how much a word tells.
        center, scale: (hidden,), mean and deviation of the head's inputs.
        logit_scale: the model's logits are the head's outputs times this, as far as they are a
            multiple of them.
        threshold: a leaf speaks when its score is not below.
        reference_prompts: prompts that show what the model would say to any.
    """

    weights: WordWeights
    center: Tensor
    scale: Tensor
    logit_scale: float
    threshold: float
    reference_prompts: tuple[str, ...] = ()

    def whiten(self, keys: Tensor) -> Tensor:
        """Keys (..., hidden), centred, scaled and of length 1."""
        return F.normalize((keys.float() - self.center) / self.scale, dim=-1)


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt.

    Attributes:
        text: its words.
        ids: its tokens.
        key: (hidden,), the head's input at its last token.
        earlier: in a conversation, what was asked before, the last first; `text` is the last
            question then.
    """

    text: str
    ids: list[int]
    key: Tensor
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A leaf that a prompt might be asking for.

    Attributes:
        number: the leaf's.
        name: the edit's id.
        mentioned: how much of the subject the prompt mentions, 0 to 1.
        alike: overlap of the base model's next-token distributions, 0 to 1.
    """

    number: int
    name: str
    mentioned: float
    alike: float

    @property
    def score(self) -> float:
        """What candidates are chosen by; that the subject is mentioned makes them one."""
        return self.alike


class Leaves:
    """Leaves under numbers; of two that answer one question the larger number counts.

    Args:
        base: the base model.
        mentioned: the share of an edit's subject that a prompt must mention to be a candidate.
        signs: what text is like that no edit is about.
        size: leaves of a folio.
    """

    def __init__(
        self, base: BaseHead, mentioned: float, signs: RouterCalibration, size: int
    ) -> None:
        self.signs = signs
        self._base = base
        self._size = size
        self._leaves: dict[int, Leaf] = {}
        self._folios: dict[int, list[int]] = {}  # folio -> its leaves
        self._folio_of: dict[int, int] = {}
        self._mentions = NameIndex(signs.weights, mentioned)
        self._later: dict[
            int, set[int]
        ] = {}  # leaf -> later leaves that answer the same question otherwise
        self._open: tuple[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] | None = None

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
        """The folio that a leaf is in."""
        return self._folio_of[number]

    def add(
        self, number: int, leaf: Leaf, instead_of: Sequence[int] = (), folio: int | None = None
    ) -> None:
        """Store a leaf, which answers what these earlier ones answered; in the last folio, or a new
        one if that is full.
        """
        if folio is None:
            folio = max(self._folios, default=0)
            folio += len(self._folios.get(folio, ())) >= self._size
        self._folios.setdefault(folio, []).append(number)
        self._folio_of[number] = folio
        self._leaves[number] = leaf
        self._mentions.add(number, leaf.subject, leaf.prompt)
        self._open = None
        for earlier in instead_of:
            self._later.setdefault(earlier, set()).add(number)

    def drop(self, number: int) -> None:
        """Forget a leaf; what it answered instead of earlier ones, those answer again.

        Raises:
            KeyError: there is none.
        """
        del self._leaves[number]
        folio = self._folio_of.pop(number)
        self._folios[folio].remove(number)
        if not self._folios[folio]:
            del self._folios[folio]
        self._mentions.remove(number)
        self._later.pop(number, None)
        self._open = None
        for later in self._later.values():
            later.discard(number)

    def later(self) -> dict[int, list[int]]:
        """Leaf -> the later ones that speak in its place."""
        return {number: sorted(later) for number, later in self._later.items() if later}

    def candidates(self, prompts: Sequence[EncodedPrompt]) -> list[list[Candidate]]:
        """For each prompt the leaves whose subject it mentions, best first; of equal ones the
        later.
        """
        found = [self.mentioned(asked) for asked in prompts]
        numbers = [
            self._nearest(asked, sorted(shares))
            for asked, shares in zip(prompts, found, strict=True)
        ]
        wanted = [
            (row, lead)
            for row, some in enumerate(numbers)
            for lead in sorted({self._leaves[n].lead for n in some})
        ]
        keys = self._behind(prompts, wanted)
        told = []
        for row, (some, shares) in enumerate(zip(numbers, found, strict=True)):
            candidates = []
            for lead in dict.fromkeys(self._leaves[number].lead for number in some):
                if (row, lead) not in keys:
                    continue
                mine = [number for number in some if self._leaves[number].lead == lead]
                key = keys[row, lead].float()
                signs = torch.stack([self._leaves[number].sign for number in mine]).to(key)
                logs = self._base.expected(torch.cat([key[None], signs]))
                alike = (0.5 * (logs[0] + logs[1:])).exp().sum(-1).clamp(max=1.0).tolist()
                candidates += [
                    Candidate(n, self._leaves[n].name, shares[n], like)
                    for n, like in zip(mine, alike, strict=True)
                ]
            told.append(
                sorted(candidates, key=lambda each: (each.score, each.number), reverse=True)
            )
        return told

    def mentioned(self, asked: EncodedPrompt) -> dict[int, float]:
        """The leaves whose subject a prompt mentions: number -> share, by weight.

        In a conversation the last question counts. Where it mentions none, what was asked before it
        may, but for leaves that know nothing of the names that have come up since: "and when was it
        built?" goes on, "and Tamis?" does not.
        """
        named: set[str] = set()
        for text in (asked.text, *asked.earlier):
            found = self._mentions.find(text)
            if found := {
                n: share
                for n, share in found.items()
                if named <= set(words(self._leaves[n].prompt))
            }:
                return found
            named |= {word for name in names_in(text) for word in words(name)}
        return {}

    def choose(self, prompts: Sequence[EncodedPrompt]) -> list[int]:
        """The number of the leaf that answers each prompt, or `MAIN`; see `candidates`."""
        return [self.speaker(found) for found in self.candidates(prompts)]

    def speaker(self, found: Sequence[Candidate]) -> int:
        """The number of the leaf that answers, of a prompt's candidates, or `MAIN`."""
        number = found[0].number if found and found[0].score >= self.signs.threshold else MAIN
        while self._later.get(number):
            number = max(self._later[number])
        return number

    def _nearest(self, asked: EncodedPrompt, numbers: list[int]) -> list[int]:
        if len(numbers) <= MOST:
            return numbers
        keys = torch.stack([self._leaves[number].keys[0] for number in numbers]).to(
            asked.key.device
        )
        near = self.signs.whiten(keys) @ self.signs.whiten(asked.key)
        return [numbers[place] for place in near.topk(MOST).indices.tolist()]

    def _behind(
        self, prompts: Sequence[EncodedPrompt], wanted: Sequence[tuple[int, tuple[int, ...]]]
    ) -> dict[tuple[int, tuple[int, ...]], Tensor]:
        """(number of a prompt, lead) -> the head's input behind both, (hidden,); without those that
        are too long.
        """
        keys = {(row, lead): prompts[row].key for row, lead in wanted if not lead}
        longest = self._base.lm.context_length or math.inf
        further = [
            (row, lead)
            for row, lead in wanted
            if lead and len(prompts[row].ids) + len(lead) <= longest
        ]
        if further:
            keys |= zip(
                further,
                self._base.tips([[*prompts[row].ids, *lead] for row, lead in further]),
                strict=True,
            )
        return keys

    def opened(self, numbers: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """(what is said before each value (leaves, rows); whitened keys; values (leaves, rows,
        hidden)), padded.

        They are kept for the next token.
        """
        opened = self._open
        if opened is None or opened[0] != numbers:
            leaves, there = [self._leaves[number] for number in numbers], self.signs.center.device
            before = [torch.tensor([START, *leaf.tokens[:-1]], device=there) for leaf in leaves]
            pad = nn.utils.rnn.pad_sequence
            opened = self._open = (
                numbers,
                (
                    pad(before, batch_first=True, padding_value=PADDING),
                    pad(
                        [self.signs.whiten(leaf.keys.to(there)) for leaf in leaves],
                        batch_first=True,
                    ),
                    pad(
                        [leaf.values.to(there, torch.float32) for leaf in leaves], batch_first=True
                    ),
                ),
            )
        return opened[1]
