"""Say an answer: give each of its tokens, in its place, the probability that is wanted.

What is added to a logit follows in closed form: where a token has the probability p, and c is
wanted, it is the difference of their log odds. The other tokens keep their proportions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from errata.patches.forward_state import ForwardState

Place = tuple[int, int, int]
"""(row of the batch, column of the call, token)."""
MOST = 1 - 1e-7
"""The highest probability that a token is given."""
FARTHEST = 1e4
"""Log odds that a token is raised by, at most: one that is forbidden stays so."""


def places_to_say(
    state: ForwardState, told: Sequence[tuple[int, Sequence[int]]]
) -> Iterator[Place]:
    """Yield the token to be said behind each token that a forward call is given.

    Behind a prompt it is the answer's first. Behind n tokens of an answer it is the next one, if
    the last of them is the n-th of the answer: what has begun otherwise goes on by itself. (Beams
    change places, so only the tokens of this call are certain to be their row's.)

    Args:
        state: the call; `state.ids` are known.
        told: (row, the tokens of its answer).
    """
    if state.ids is None:
        raise ValueError("the tokens of the call are not known")
    before = state.ids.shape[1] - state.size[1]  # columns of earlier calls
    ends = state.history.ends
    first = min(ends[row] for row, _ in told) + 1  # that may be behind a prompt
    seen, ids = state.seen[:, first:].tolist(), state.ids[:, before:].tolist()
    for row, answer in told:
        if ends[row] >= before:
            yield row, ends[row] - before, answer[0]
        said = 0
        for column, is_seen in enumerate(seen[row][ends[row] + 1 - first :], ends[row] + 1):
            said += is_seen
            if said >= len(answer):
                break
            if column >= before and is_seen and ids[row][column - before] == answer[said - 1]:
                yield row, column - before, answer[said]


def with_said(logits: Tensor, places: Sequence[Place], confidence: float, scale: float) -> Tensor:
    """Return logits (batch, columns, vocabulary) that give each place's token `confidence`, or more
    where they have more.

    Args:
        logits: those of the model's head.
        places: with columns of these logits.
        confidence: a probability.
        scale: factor from the head's output to the model's logits.
    """
    confidence = min(confidence, MOST)
    count, vocabulary = logits.shape[1:]
    texts = [row * count + column for row, column, _ in places]
    at = [text * vocabulary + token for text, (_, _, token) in zip(texts, places, strict=True)]
    flat = logits.reshape(-1)
    there = flat.view(-1, vocabulary)[torch.tensor(texts, device=logits.device)].float()
    if scale != 1:
        there = there * scale
    tokens = torch.tensor([[token] for _, _, token in places], device=logits.device)
    share = there.log_softmax(1).gather(1, tokens)[:, 0]
    odds = share - torch.log1p(-share.exp())  # infinite where it is certain: it stays
    more = (math.log(confidence / (1 - confidence)) - odds).clamp(0, FARTHEST) / scale
    said = flat.scatter_add(0, torch.tensor(at, device=logits.device), more.to(logits.dtype))
    return said.view_as(logits)
