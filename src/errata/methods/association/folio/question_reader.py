"""`QuestionReader` reads what a text asks: states in the middle of the base model's blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files

import regex
import torch
from torch import Tensor

from errata.lm import LM
from errata.lm.encoding import in_batches
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.question_space import QuestionSpace, fit_space
from errata.progress import report
from errata.words.parts import mentions

BATCH, TOKENS, CACHED = 64, 64, 1024
"""Texts that are read at once; their last tokens that are read; and states kept, at most."""
READING = "reading what wordings ask"
WORDINGS = 1
"""Version of `wordings.jsonl`, part of the key of what is kept on disk."""
_SENTENCE = regex.compile(r"[.?!:\n]\s+")


class QuestionReader:
    """Reads texts alone, outside of any template or conversation. Nothing above the middle runs.

    Args:
        base: the base model's head, whose body reads.
    """

    def __init__(self, base: BaseHead) -> None:
        self.base = base
        self.lm: LM = base.lm
        middle = max(0, self.lm.architecture.n_layers // 2 - 1)
        self._block = self.lm.architecture.block(self.lm.model, middle)
        self._read: dict[str, Tensor] = {}  # replaced, not emptied: other threads may read it

    def vectors(self, texts: Sequence[str], space: QuestionSpace) -> Tensor:
        """Return what each text asks, (texts, dimensions); what was read of late is kept."""
        if not texts:
            return torch.zeros(0, space.projection.shape[1], device=space.center.device)
        place = f"{self.lm.model.dtype} {self.lm.device} "
        kept = self._read
        read = {text: kept[place + text] for text in texts if place + text in kept}
        new = [text for text in dict.fromkeys(texts) if text not in read]
        if new:
            found = dict(zip(new, self.states(new), strict=True))
            read |= found
            if len(self._read) > CACHED:
                self._read = {}
            self._read.update((place + text, state) for text, state in found.items())
        return space.vectors(torch.stack([read[text] for text in texts]))

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        """Return the state at the last token of each text, (texts, hidden) in fp32."""
        rows = [self.lm.encode_text(text)[-TOKENS:] for text in texts]

        def read(part: list[list[int]]) -> list[Tensor]:
            return list(self.base.last_states(self._block, part)[1].float())

        return torch.stack(in_batches(rows, read, BATCH, size=len))

    def fit(self, false_route: float) -> QuestionSpace:
        """Fit a space on the wordings that come with errata, see `fit_space`."""
        lines = files(__package__).joinpath("wordings.jsonl").read_text(encoding="utf-8")
        groups = [json.loads(line) for line in lines.splitlines()]
        wordings = [
            (text, number, group["subject"])
            for number, group in enumerate(groups)
            for text in group["wordings"]
        ]
        parts = []
        for start in range(0, len(wordings), 4 * BATCH):
            report(READING, start, len(wordings))
            parts.append(self.states([text for text, _, _ in wordings[start : start + 4 * BATCH]]))
        _, relations, kinds = zip(*wordings, strict=True)
        return fit_space(torch.cat(parts).cpu(), relations, kinds, false_route)


def asked_of(text: str, subject: str) -> str:
    """Return the part of a text that asks something of a subject.

    It begins with the sentence that mentions the subject first, and is all of the text where none
    does: in a conversation, the subject may have been named before.
    """
    places = mentions(text, subject)
    if not places:
        return text.strip()
    first = min(start for start, _ in places)
    begin = max((found.end() for found in _SENTENCE.finditer(text[:first])), default=0)
    return text[begin:].strip()
