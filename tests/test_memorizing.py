"""Memorizing attention: keys and values of facts, read by the heads of one late block."""

from __future__ import annotations

import math

import pytest
import torch
from edited import EDITS, EXAMPLES, PROMPTS, edit_model, edited_model, same_state
from families import HIDDEN, TWELVE, tiny_model, tiny_tokenizer

import errata
from errata.errors import ConfigError
from errata.lm.heads import Heads, heads_of
from errata.methods.association.memorizing.patch import MemoryAttention

ASKED = [PROMPTS[0], PROMPTS[7], PROMPTS[2], "x"]
FEW = ("gpt2", "falcon", "bloom")
"""Projections in one, for groups of heads, and for each head; Llama's own are read below."""


@pytest.mark.parametrize(
    "family",
    [*FEW, *(pytest.param(name, marks=pytest.mark.long) for name in TWELVE if name not in FEW)],
)
def test_the_values_that_are_kept_are_those_of_the_cache(family: str) -> None:
    """Values are not rotated, so the cache has them as they were made."""
    model = edited_model(family, "memorizing", EDITS[:1])
    method, lm = model.method, model.lm
    heads = method.heads[0]
    with model.disable_edits(), torch.no_grad():
        row = method.encode(EDITS[0])
        cache = lm.model(input_ids=torch.tensor([row.ids]), use_cache=True).past_key_values
        layer = cache.layers[method.blocks[0]]
    states = method.patch.passages[EDITS[0].id].states
    both = states.unflatten(-1, (2, heads.key_heads, heads.width)).permute(1, 2, 0, 3)
    torch.testing.assert_close(both[1], layer.values[0], rtol=1e-4, atol=1e-5)
    norms = both[0].norm(dim=-1)
    if family in ("llama", "mistral", "qwen2", "gpt2", "gpt_neo", "opt", "bloom", "mpt"):
        torch.testing.assert_close(norms, layer.keys[0].norm(dim=-1), rtol=1e-3, atol=1e-4)


def test_the_best_keys_are_read_as_brute_force_would_read_them() -> None:
    """With groups of query heads that share keys, padding, and fewer keys than are asked for."""
    draw = torch.Generator().manual_seed(0)
    heads = Heads(("q", "k", "v"), "o", heads=4, key_heads=2, width=3)
    attention = MemoryAttention(heads, 12, top=2, rank=2, generator=draw)
    for parameter in attention.parameters():
        parameter.data.normal_(generator=draw)
    queries, states = torch.randn(2, 3, 4, 3, generator=draw), torch.randn(2, 5, 12, generator=draw)
    local = torch.randn(2, 3, 12, generator=draw)
    mask = torch.tensor([[True] * 5, [True] + [False] * 4])
    got = local + attention(queries, states, mask, local)
    keys, values = states[..., :6].unflatten(-1, (2, 3)), states[..., 6:].unflatten(-1, (2, 3))
    for row in range(2):
        there = [i for i in range(5) if mask[row, i]]
        for column in range(3):
            read = []
            for head in range(4):
                query = queries[row, column, head]
                ranked = sorted(there, key=lambda i: -float(query @ keys[row, i, head // 2]))[:2]
                weights = torch.stack([query @ keys[row, i, head // 2] for i in ranked])
                weights = (weights / math.sqrt(3)).softmax(0)
                found = zip(weights, ranked, strict=True)
                read.append(sum(w * values[row, i, head // 2] for w, i in found))
            memory = torch.cat(read)
            memory = memory + attention.value_up @ (attention.value_down @ memory)
            gates = attention.gate.sigmoid().repeat_interleave(3)
            wanted = gates * memory + (1 - gates) * local[row, column]
            torch.testing.assert_close(got[row, column], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_rows_with_a_fact_change_and_only_from_the_prompts_end_on(family: str) -> None:
    model = edited_model(family, "memorizing", EDITS)
    lm = model.lm
    with model.disable_edits():
        names = model.method.patch.chosen(lm, [tuple(lm.encode_prompt(text)) for text in ASKED])
    assert any(names) and not all(names)
    batch = lm.batch([lm.encode(text, "two brothers") for text in ASKED])
    with torch.no_grad(), errata.lm.prompt_tokens(batch.prompt_mask):
        edited = lm.run(batch).logits
        with model.disable_edits():
            base = lm.run(batch).logits
    for row, name in enumerate(names):
        prompt = batch.prompt_mask[row].clone()
        last = int(prompt.nonzero()[-1])
        prompt[last] = False
        assert torch.equal(edited[row, prompt], base[row, prompt])
        assert torch.equal(edited[row, last], base[row, last]) == (not name)


def test_several_blocks_read_each_its_own_keys_and_values() -> None:
    """A gate that is shut leaves its block out: what is left is as the other alone."""
    both = edited_model("llama", "memorizing", EDITS[:3], block=2, blocks=2)
    assert list(both.method.blocks) == [1, 2]
    batch = both.lm.prompt_batch(PROMPTS[:1])
    for number, block in enumerate(both.method.blocks):
        one = edited_model("llama", "memorizing", EDITS[:3], block=block)
        own = dict(one.method.network[0].named_parameters())
        with torch.no_grad():
            for name, parameter in both.method.network[number].named_parameters():
                parameter.copy_(own[name])
            gate = both.method.network[1 - number].gate
            before = gate.clone()
            gate.fill_(-200.0)
            alone, pair = one.lm.run(batch).logits, both.lm.run(batch).logits
            gate.copy_(before)
            torch.testing.assert_close(pair, alone, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(both.lm.run(batch).logits, alone, atol=1e-4)


def test_a_gate_that_is_shut_is_the_base_model() -> None:
    model = edited_model("llama", "memorizing", EDITS)
    model.method.network[0].gate.data.fill_(-200.0)
    batch = model.lm.prompt_batch(ASKED)
    with torch.no_grad():
        edited = model.lm.run(batch).logits
        with model.disable_edits():
            assert torch.equal(edited, model.lm.run(batch).logits)


@pytest.mark.long
def test_training_moves_gates_and_changes_and_goes_on_where_it_was_stopped() -> None:
    def untrained() -> errata.EditModel:
        config = errata.MemorizingConfig(training_steps=3, asked=4, background=32, rank=4)
        return errata.EditModel(tiny_model("llama"), config, tiny_tokenizer())

    one, other = untrained(), untrained()
    before = {name: each.clone() for name, each in one.method.network.named_parameters()}

    def stop(_: int) -> None:
        raise ZeroDivisionError

    one.prepare(EXAMPLES)
    with pytest.raises(ZeroDivisionError):
        other.prepare(EXAMPLES, stop)
    other.prepare(EXAMPLES)
    same_state(one, other, atol=1e-6)
    moved = {n for n, each in one.method.network.named_parameters() if not each.equal(before[n])}
    assert moved == before.keys()


def test_bad_settings_and_files_are_refused_in_a_line() -> None:
    with pytest.raises(ConfigError, match="no layer 9"):
        edit_model("llama", "memorizing", block=9)
    with pytest.raises(ConfigError, match="3 blocks are to read, the last of them block 1"):
        edit_model("llama", "memorizing", block=1, blocks=3)
    model = edited_model("llama", "memorizing", EDITS[:2])
    tensors, values = model.method.state()
    cut = {**tensors, "states": tensors["states"][:, :-1]}
    with pytest.raises(ValueError, match="'states' is of shape"):
        model.method.load_state(EDITS[:2], cut, values)
    assert heads_of(model.lm, 0).width * heads_of(model.lm, 0).heads == HIDDEN
