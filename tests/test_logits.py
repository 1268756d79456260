"""Logits at some positions are those of the whole; a pass that is stopped goes no higher."""

from __future__ import annotations

import pytest
import torch
from families import tiny_model, tiny_tokenizer

from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.hooks import capture_output, stop_after
from errata.lm.logits import logits_at

PROMPTS = ["The capital of France is", "x", "Who wrote the book about the tower?"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
def test_they_are_those_of_the_whole(family):
    lm = LM(tiny_model(family), tiny_tokenizer())
    batch = lm.batch([Row(tuple(ids), len(ids)) for ids in map(lm.encode_prompt, PROMPTS)])
    rows, columns = batch.attention_mask.bool().nonzero(as_tuple=True)
    picked = torch.tensor([0, 3, 5, len(rows) - 1])
    with torch.no_grad():
        whole = lm.run(batch).logits
        some = logits_at(lm, batch, rows[picked], columns[picked])
        last = lm.run(batch, keep=1).logits[:, -1]
    torch.testing.assert_close(some, whole[rows[picked], columns[picked]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, whole[:, -1], rtol=1e-5, atol=1e-5)


def test_a_pass_is_stopped_after_a_module_and_the_model_is_as_before():
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    batch, ran = lm.prompt_batch(PROMPTS), []
    block = lm.architecture.block(lm.model, 1)
    lm.architecture.block(lm.model, 2).register_forward_hook(lambda *_: ran.append(2))
    with torch.no_grad():
        before = lm.run(batch).logits
        del ran[:]
        with capture_output(block) as states, stop_after(block):
            lm.run(batch)
        assert len(states) == 1 and not ran
        assert torch.equal(lm.run(batch).logits, before) and ran
    with pytest.raises(ZeroDivisionError), stop_after(block):
        raise ZeroDivisionError
