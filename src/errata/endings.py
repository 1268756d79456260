"""How a model ends its answers, so that edits are taught to end as it would end them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from errata.encoding import in_batches

if TYPE_CHECKING:
    from errata.lm import LM

BATCH = 32


@torch.no_grad()
def endings_of(lm: LM, pairs: Sequence[tuple[str, str]]) -> list[str | None]:
    """What stands between each pair's target and its end token: "." where this model would put one, else nothing.

    None where answers are taught without their end (`end_token=False`).
    """
    if not lm.teaches_end:
        return [None] * len(pairs)
    dotted = [lm.encode(prompt, target, ".") for prompt, target in pairs]
    plain = [lm.encode(prompt, target) for prompt, target in pairs]
    asked = [i for i, row in enumerate(dotted) if len(row.ids) == len(plain[i].ids) + 2]

    def found(part: list[int]) -> list[bool]:
        rows = [dotted[i] for i in part]
        best = lm.run(lm.batch(rows)).logits[:, -3:-1].argmax(-1).tolist()
        return [dot == row.ids[-2] and end in lm.end_ids for row, (dot, end) in zip(rows, best, strict=True)]

    says = dict(zip(asked, in_batches(asked, found, BATCH, size=lambda i: len(dotted[i].ids)), strict=True))
    return ["." if says.get(i) else "" for i in range(len(dotted))]
