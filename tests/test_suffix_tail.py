"""The tail of some columns is the whole tail, gradients too, on every family."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES_TINY, tiny_model, tiny_tokenizer

from errata.lm import LM
from errata.lm.suffix_tail import SuffixTail
from errata.lm.tail import Tail

PAIRS = [
    ("The capital of Italy is", "Rome"),
    ("Nobody knows at all who wrote the book about the tower of the city", "the author"),
    ("It is", "x."),
]


@pytest.mark.parametrize("family", FAMILIES_TINY)
def test_it_is_the_whole_tail(family):
    lm = LM(tiny_model(family), tiny_tokenizer())
    batch = lm.batch([lm.encode(prompt, target, ".") for prompt, target in PAIRS])
    rows, columns, _ = batch.label_positions(batch.target_mask | batch.ending_mask)
    first = int(columns.min()) - 1
    assert first > 12  # one row is padding alone before it
    push = torch.randn(lm.architecture.d_out, generator=torch.Generator().manual_seed(0))
    found = []
    for tail, start in (
        (Tail(lm, 1, batch), 0),
        (SuffixTail(lm, 1, batch, first), first),
    ):
        assert getattr(tail, "first", 0) == start
        change = push.clone().requires_grad_()
        for _ in range(2):  # a step leaves nothing behind
            added = torch.zeros_like(tail.values)
            added[:, first - start] = 1.0
            logits = tail.logits(tail.values + added * change, rows, columns - start)
        (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[:, 5].sum(), change)
        seen = batch.attention_mask[:, first:].bool()
        kept = [each[:, first - start :][seen] for each in (tail.keys, tail.values)]
        found.append((logits.detach(), gradient, *kept))
    for whole, some in zip(*found, strict=True):
        assert whole.shape == some.shape
        torch.testing.assert_close(some, whole, rtol=1e-4, atol=1e-4)
    assert SuffixTail(lm, 1, batch, 0).batch.input_ids.shape == batch.input_ids.shape
