"""The matrices of a block's own attention, read off its modules."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES_TINY, N_LAYERS, tiny_model, tiny_tokenizer
from grid import grid, token_places
from torch.nn import functional as F

from errata.errors import ErrataError
from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.heads import heads_of
from errata.lm.hooks import capture_input, capture_output
from errata.lm.self_attention import self_attentions

ROUGHLY = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "mpt",
           "stablelm", "starcoder2", "cohere", "olmo", "olmo2")  # fmt: skip
"""Families that take a mean out of what a block reads, or do not norm it, which no weight for each
dimension does.
"""


@grid("family", [(family,) for family in FAMILIES_TINY], lambda family: {token_places(family)})
def test_they_make_of_one_token_what_the_block_makes_of_it(family: str) -> None:
    lm = LM(tiny_model(family), tiny_tokenizer())
    (own,) = self_attentions(lm, [N_LAYERS - 1])
    heads, read, said = heads_of(lm, N_LAYERS - 1), [], []
    for token in (17, 170):
        with (
            torch.no_grad(),
            capture_input(lm.architecture.block(lm.model, N_LAYERS - 1)) as states,
            capture_output(lm.model.get_submodule(heads.output)) as made,
        ):
            lm.run(lm.batch([Row((token,), 1)]), use_cache=False)
        read.append(F.rms_norm(states[0].flatten(), states[0].shape[-1:]))
        said.append(made[0].flatten())
    wanted = said[0] - said[1]  # without biases
    got = own.output @ own.value @ (read[0] - read[1])
    if family in ROUGHLY:
        assert F.cosine_similarity(got, wanted, dim=0) > 0.9
    else:
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_queries_and_keys_are_the_blocks_own() -> None:
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    attention = lm.model.model.layers[1].self_attn
    norm = lm.model.model.layers[1].input_layernorm.weight
    (own,) = self_attentions(lm, [1])
    torch.testing.assert_close(own.query, attention.q_proj.weight * norm, rtol=1e-3, atol=1e-4)
    width = attention.head_dim
    for head in range(own.heads):
        served = head * heads_of(lm, 1).key_heads // own.heads
        torch.testing.assert_close(
            own.key[head * width :][:width],
            (attention.k_proj.weight * norm)[served * width :][:width],
            rtol=1e-3,
            atol=1e-4,
        )


def test_a_block_that_is_not_there_is_named() -> None:
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    with pytest.raises(ErrataError, match=str(N_LAYERS)):
        self_attentions(lm, [N_LAYERS])
