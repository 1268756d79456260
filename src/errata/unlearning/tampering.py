"""What brings back what was forgotten: weights rounded to few bits, and a little training.

Forgetting that only hides shows there (quantisation: arXiv 2410.16454; relearning: arXiv 2402.16835
and 2406.13356): measured beside a model that never knew, which relearns, too, but from nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from errata.lm import LM
from errata.progress import OnProgress
from errata.unlearning.config import UnlearningConfig
from errata.unlearning.measures import share_said
from errata.unlearning.objectives import nll
from errata.unlearning.parameters import trained_of
from errata.unlearning.passages import Passage
from errata.unlearning.scored import Side

GROUP = 128
"""Neighbouring weights of a row that share a scale."""
STEPS = (0, 1, 2, 5, 10, 20)
"""Steps of relearning after which is looked."""
RELEARNING = "relearning"


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Return a weight (rows, columns) rounded to signed whole numbers of so many bits, with one
    scale for each `GROUP` columns of a row.
    """
    largest = 2 ** (bits - 1) - 1
    parts = []
    for part in torch.split(weight.float(), GROUP, dim=1):
        scale = part.abs().amax(1, keepdim=True).clamp(min=1e-12) / largest
        parts.append(torch.round(part / scale) * scale)
    return torch.cat(parts, 1).to(weight.dtype)


@contextmanager
def quantised(lm: LM, bits: int) -> Iterator[None]:
    """Within a `with` block, have the blocks' weight matrices rounded to so many bits."""
    embedded = lm.model.get_input_embeddings().weight
    matrices: list[nn.Parameter] = [
        each
        for each in lm.architecture.body_module(lm.model).parameters()
        if each.dim() == 2 and each is not embedded
    ]
    kept = [each.data for each in matrices]
    try:
        for each in matrices:
            each.data = rounded(each.data, bits)
        yield
    finally:
        for each, data in zip(matrices, kept, strict=True):
            each.data = data


def relearning(
    lm: LM, passages: Sequence[Passage], progress: OnProgress, steps: Sequence[int] = STEPS
) -> dict[int, float]:
    """Train a model on every second passage again; return steps -> share of the others' answers
    that stand in what it then says. The model is afterwards what it was.

    Args:
        lm: the model.
        passages: questions, at least two.
        progress: called with what is done.
        steps: after which is looked, rising.
    """
    config = UnlearningConfig(batch=8, lr=1e-3)
    taught, asked = passages[::2], passages[1::2]
    rows = [row for each in taught for row in each.rows(lm)]
    trained = trained_of(lm, config, 0)
    adam = torch.optim.AdamW(list(trained.parameters.values()), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    found, order = {}, list[int]()
    try:
        for step in range(max(steps) + 1):
            progress(RELEARNING, step, max(steps))
            if step in steps:
                found[step] = share_said(lm, asked, progress)
            if step == max(steps):
                break
            while len(order) < config.batch:
                order += torch.randperm(len(rows), generator=generator).tolist()
            batch, order = order[: config.batch], order[config.batch :]
            loss = nll(Side(lm, trained, [rows[each] for each in batch]))
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
    finally:
        trained.remove()
    return found
