"""Say an answer: give each of its tokens, in its place, the probability that is wanted.

What is added to a logit follows from the others in closed form: z = logsumexp(others) +
log(c / (1 - c)) has the probability c. The other tokens keep their proportions. A token that has
the probability p now leaves logsumexp(all) + log(1 - p) to the others.
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
    flat = [((row * count + column), token) for row, column, token in places]
    texts, tokens = torch.tensor(flat, device=logits.device).T
    there, token = logits.reshape(-1, vocabulary)[texts], tokens[:, None]
    before = there.gather(1, token).float()
    total = (there.float() * scale).logsumexp(1, keepdim=True)
    others = total + torch.log1p(-(before * scale - total).exp().clamp(max=1))
    wanted = (others + math.log(confidence / (1 - confidence))) / scale
    said = torch.maximum(before, wanted)[:, 0].to(logits.dtype)
    return logits.reshape(-1).scatter(0, texts * vocabulary + tokens, said).view_as(logits)
