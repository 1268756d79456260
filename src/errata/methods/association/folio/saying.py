"""Say an answer: give each of its tokens, in its place, the probability that is wanted.

What is added to a logit follows from the others in closed form: z = logsumexp(others) +
log(c / (1 - c)) has the probability c. The other tokens keep their proportions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from errata.patches.forward_state import ForwardState, last_token

NOTHING = -1
"""Stands for a token where none is to be said."""
MOST = 1 - 1e-7
"""The highest probability that a token is given."""


def tokens_to_say(state: ForwardState, rows: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
    """Return the token to be said behind each token that a forward call is given.

    Behind a prompt it is the answer's first. Behind n tokens of an answer it is the next one, if
    the last of them is the n-th of the answer: what has begun otherwise goes on by itself. (Beams
    change places, so only the tokens of this call are certain to be their row's.)

    Args:
        state: the call; `state.ids` are known.
        rows: (n,), rows of its batch.
        answers: n answers, as tokens.

    Returns:
        (n, width), `NOTHING` where none is to be said.
    """
    if state.ids is None:
        raise ValueError("the tokens of the call are not known")
    width, device = state.size[1], state.ids.device
    rows = rows.to(device)
    columns = torch.arange(state.ids.shape[1], device=device)
    last = last_token(state.prompt.to(device)[rows])[:, None]
    said = ((columns > last) & state.seen.to(device)[rows]).cumsum(-1)  # tokens behind the prompt
    longest = max(map(len, answers))
    padded = torch.tensor(
        [[NOTHING, *answer, *[NOTHING] * (longest - len(answer) + 1)] for answer in answers],
        device=device,
    )
    places = said.clamp(max=longest)  # of the token read, in `padded`, behind the one in front
    read, to_say = padded.gather(1, places), padded.gather(1, places + 1)
    goes_on = (columns == last) | ((columns > last) & (read == state.ids[rows]) & (said > 0))
    return torch.where(goes_on & (said <= longest), to_say, NOTHING)[:, -width:]


def with_said(logits: Tensor, tokens: Tensor, confidence: float, scale: float) -> Tensor:
    """Return logits (n, columns, vocabulary) that give tokens (n, columns) at least `confidence`.

    Args:
        logits: those of the model's head.
        tokens: `NOTHING` where the logits stay as they are.
        confidence: a probability.
        scale: factor from the head's output to the model's logits.
    """
    confidence = min(confidence, MOST)
    places = tokens.clamp(min=0)[..., None].to(logits.device)
    scaled = logits.float() * scale
    others = scaled.scatter(-1, places, -torch.inf).logsumexp(-1, keepdim=True)
    wanted = (others + math.log(confidence / (1 - confidence))) / scale
    before = logits.gather(-1, places)
    said = torch.maximum(before.float(), wanted).to(logits.dtype)
    is_said = (tokens != NOTHING)[..., None].to(logits.device)
    return logits.scatter(-1, places, torch.where(is_said, said, before))
