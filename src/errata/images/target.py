"""Solve for the vector that makes an encoder read a prompt as another text. No weight changes.

ReFACT (Arad et al., arXiv 2306.00738): a vector delta is added to the output of a block's MLP at
the subject's last token. Adam maximises the share of the target among the candidates (the target,
the prompt as it was, the negatives), each weighed by exp(-distance) between its text, as the
unchanged encoder reads it, and the prompt, as it is read with delta. As published: Adam at .05 for
100 steps at most, |delta| <= 4 |v|, and an end when the share is above .99.

What departs from the published code: the distance is the mean one of the states at the end token,
the only ones that are published, and at some of the padding behind it, since a denoiser looks at
both; the loss is a mean over all templates, each text in the same one; there is no divergence term,
for which a text encoder has no probabilities; and the unchanged encoder is the pipeline's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.images.encoder import TextEncoder
from errata.images.image_edit import ImageEdit
from errata.images.settings import TEMPLATES, ValueSettings


@dataclass(frozen=True)
class Solved:
    """The vector of one edit.

    Attributes:
        delta: (width,), to be added to the matrix's output at the subject's last token.
        key: (hidden,), the mean of the matrix's inputs there, over the templates.
        share: of the target among the candidates, at the end.
        steps: that Adam took.
    """

    delta: Tensor
    key: Tensor
    share: float
    steps: int


def solve(encoder: TextEncoder, layer: int, edit: ImageEdit, settings: ValueSettings) -> Solved:
    """Solve for the vector of an edit, on the encoder with what it carries.

    Raises:
        EditError: the subject is not among the prompt's tokens.
    """
    prompts = encoder.encode([template.format(edit.prompt) for template in TEMPLATES])
    places = encoder.last_of(prompts, edit.subject)
    key, value = encoder.key_and_value(prompts, layer, places)
    wanted = texts_as_read(encoder, (edit.target, edit.prompt, *edit.negatives))
    size = float(value.norm())
    delta = torch.zeros_like(value, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.lr)
    steps = 0
    with encoder.adding(layer, places, delta):
        share = share_of(encoder.states(prompts), wanted)
        while share.exp().item() <= settings.stop and steps < settings.steps:
            decay = settings.weight_decay * delta.norm() / size**2
            adam.zero_grad()
            (decay - share).backward()
            adam.step()
            with torch.no_grad():
                delta *= (settings.clamp * size / delta.norm().clamp(min=1e-12)).clamp(max=1.0)
            steps += 1
            share = share_of(encoder.states(prompts), wanted)
    return Solved(delta.detach(), key, share.exp().item(), steps)


@torch.no_grad()
def texts_as_read(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Return the candidates' states (templates, candidates, places, width), see `states`."""
    rows = [template.format(text) for template in TEMPLATES for text in texts]
    read = encoder.states(encoder.encode(rows)).float()
    return torch.unflatten(read, 0, (len(TEMPLATES), -1))


def share_of(read: Tensor, candidates: Tensor) -> Tensor:
    """Return the mean logarithm of the first candidate's share, a scalar.

    Args:
        read: (templates, places, width), the states of a prompt.
        candidates: (templates, candidates, places, width), as `texts_as_read` returns them.
    """
    distances = (read.float()[:, None] - candidates).norm(dim=3).mean(2)
    share: Tensor = (-distances).log_softmax(1)[:, 0].mean()
    return share
