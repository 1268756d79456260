"""The base model's states at its head are the same with a shared prefix and without."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES_TINY, tiny_model, tiny_tokenizer

from errata.lm import LM
from errata.methods.association.folio.base_head import BaseHead

PREFIXES = ["The capital of France", "x", "Who wrote the book?"]
ENDS = [(50, 60), (70, 80), (90, 20)]


@pytest.mark.parametrize("family", FAMILIES_TINY)
def test_behind_a_prefix_that_was_read_once(family):
    lm = LM(tiny_model(family), tiny_tokenizer())
    base = BaseHead(lm)
    rows = [lm.encode_prompt(prefix) for prefix in PREFIXES]
    begun = base.prefill(rows)
    for ends in (ENDS, ENDS[:1]):  # what was begun may be gone on from again
        got = base.last_hidden_states_after(begun, torch.tensor(ends))
        wanted = [[base.last_hidden_states([[*row, *end]])[0] for row in rows] for end in ends]
        torch.testing.assert_close(
            got, torch.stack([torch.stack(each) for each in wanted]), rtol=0, atol=1e-4
        )
