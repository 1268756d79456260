"""Withhold what was erased: where its tokens would tell it, they get the lowest of the logits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from errata.lm import LM
from errata.methods.association.folio.saying import Place
from errata.patches.forward_state import ForwardState

Spelling = tuple[int, ...]
"""The tokens of a text that is not to be said."""


def spellings(lm: LM, texts: Iterable[str]) -> list[Spelling]:
    """Return the ways to spell texts: as they are, behind a space or not."""
    forms = [space + text for text in texts for space in (" ", "")]
    return [ids for ids in dict.fromkeys(map(tuple, lm.encode_pieces(forms))) if ids]


def withheld_places(
    state: ForwardState, told: Sequence[tuple[int, Sequence[Spelling]]], spared: Collection[int]
) -> Iterator[Place]:
    """Yield the tokens that are withheld behind each token that a forward call is given.

    Behind a prompt these are the first of each spelling; behind a token of the answer, the token
    that follows it in a spelling. (Beams change places, so only the tokens of this call are certain
    to be their row's.) A text of one token is withheld everywhere.

    Args:
        state: the call; `state.ids` are known.
        told: (row, spellings of what is withheld from it).
        spared: first tokens of longer texts that other answers begin with, too.
    """
    if state.ids is None:
        raise ValueError("the tokens of the call are not known")
    width, columns = state.size[1], state.ids.shape[1]
    ends = state.history.ends
    for row, texts in told:
        whole = {ids[0] for ids in texts if len(ids) == 1}
        first = whole | {ids[0] for ids in texts if ids[0] not in spared}
        last = ends[row]
        start = max(last, columns - width)
        for column, token in enumerate(state.ids[row, start:].tolist(), start):
            if not bool(state.seen[row, column : column + 1].all()):  # padding
                continue
            behind = {b for ids in texts for a, b in pairwise(ids) if a == token}
            for each in first if column == last else whole | behind:
                yield row, column - (columns - width), each


def with_withheld(logits: Tensor, places: Sequence[Place]) -> Tensor:
    """Return logits (batch, columns, vocabulary) in which each place has the lowest of its column.

    Args:
        logits: those of the model's head.
        places: with columns of these logits.
    """
    rows, columns, tokens = torch.tensor(places, device=logits.device).T
    lowest = logits.detach()[rows, columns].amin(-1)
    return logits.index_put((rows, columns, tokens), lowest)
