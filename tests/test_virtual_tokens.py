"""Virtual tokens against a plain model that is given them, and against PEFT's tuning."""

from __future__ import annotations

import inspect
from itertools import product

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model, logits_of
from families import TWELVE, tiny_model, tiny_tokenizer
from grid import grid, token_places
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache

from errata import Edit
from errata.errors import ConfigError, PromptTooLongError
from errata.lm import LM
from errata.patches import VirtualTokens

N = 5
FAMILIES = grid("family", [(each,) for each in TWELVE], lambda family: {token_places(family)})


def lm_of(family):
    return LM(tiny_model(family), tiny_tokenizer())


def drawn(lm, seed=0):
    embedded = lm.model.get_input_embeddings().weight
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(N, lm.architecture.hidden_size, generator=draw) * embedded.std()


def by_hand(lm, embeddings, ids):
    """Logits (tokens, vocabulary) of one text behind the embeddings, from the plain model."""
    model, n = lm.model, len(embeddings)
    embedded = torch.cat([embeddings, model.get_input_embeddings()(ids)])[None]
    options = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        rotary = any(name.endswith("inv_freq") for name, _ in model.named_buffers())
        first = torch.arange(-n, 0) if rotary else torch.zeros(n, dtype=torch.long)
        options["position_ids"] = torch.cat([first, torch.arange(len(ids))])[None]
    with torch.no_grad():
        return model(
            inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2]).long(), **options
        ).logits[0, n:]


@FAMILIES
def test_they_are_tokens_in_front_of_each_row(family):
    lm = lm_of(family)
    embeddings = drawn(lm)
    rows = [torch.tensor(lm.encode_prompt(prompt)) for prompt in PROMPTS]
    expected = [by_hand(lm, embeddings, ids) for ids in rows]
    for side in ("left", "right"):
        batch = lm.prompt_batch(PROMPTS, side)
        with VirtualTokens(embeddings).on(lm), torch.no_grad():
            logits = lm.run(batch).logits
        assert logits.shape[:2] == batch.input_ids.shape
        for row, mask, wanted in zip(logits, batch.prompt_mask, expected, strict=True):
            torch.testing.assert_close(row[mask], wanted, rtol=0, atol=1e-4)


@FAMILIES
def test_a_prefix_that_is_what_the_model_remembers_says_the_same(family):
    """Keys and values in the cache, at every layer, in the place of those of the tokens: the
    mechanism of prefix tuning.
    """
    lm = lm_of(family)
    patch = VirtualTokens(drawn(lm))
    remembered = VirtualTokens(
        torch.zeros(N, lm.architecture.hidden_size), patch.with_memory(lm).memory
    )
    assert sorted(remembered.memory) == list(range(lm.architecture.n_layers))
    with patch.on(lm):
        expected, answers = logits_of(lm.model, lm), lm.generate(PROMPTS, max_new_tokens=3)
    with remembered.on(lm):
        torch.testing.assert_close(logits_of(lm.model, lm), expected, rtol=0, atol=1e-4)
        assert lm.generate(PROMPTS, max_new_tokens=3) == answers
        assert lm.generate(PROMPTS, max_new_tokens=3, use_cache=False) == answers


@grid(
    "family",
    [("llama",), ("gpt_neox",), ("cohere",), ("bloom",)],
    lambda family: {token_places(family)},
)
def test_prompt_tuning_is_pefts_where_positions_are_relative(family):
    from peft import PromptTuningConfig, get_peft_model, set_peft_model_state_dict

    edited = edit_model(family, "prompt-tuning", EDITS[:2], tokens=N, lr=0.05)
    other = get_peft_model(
        tiny_model(family), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N)
    ).eval()
    set_peft_model_state_dict(other, edited.method.state()[0])
    ids = torch.tensor([edited.lm.encode_prompt(PROMPTS[2])])
    with torch.no_grad():
        expected = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, N:]
        torch.testing.assert_close(edited(input_ids=ids).logits, expected, rtol=0, atol=1e-4)


def test_prefix_tuning_is_pefts_where_positions_are_relative(family="bloom"):
    from peft import PrefixTuningConfig, get_peft_model, set_peft_model_state_dict

    edited = edit_model(family, "prefix-tuning", EDITS[:2], tokens=N, lr=0.05)
    other = get_peft_model(
        tiny_model(family), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N)
    ).eval()
    pairs = edited.method.patch.memory.values()
    flat = torch.stack([torch.stack(pair, dim=1) for pair in pairs], dim=1).reshape(
        N, -1
    )  # (n, layers, 2, heads, width)
    set_peft_model_state_dict(other, {"prompt_embeddings": flat})
    ids = torch.tensor([edited.lm.encode_prompt(PROMPTS[2])])
    with torch.no_grad():
        expected = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(edited(input_ids=ids).logits, expected, rtol=0, atol=1e-4)


@grid(
    "family method",
    [*product(("llama", "gpt2", "opt", "mpt"), ("prompt-tuning", "prefix-tuning"))],
    lambda family, method: {family, (token_places(family), method)},
)
def test_what_a_forward_call_gives_is_of_the_given_tokens(family, method):
    model = edit_model(family, method, EDITS[:2], tokens=N, lr=0.1)
    batch = model.lm.prompt_batch(PROMPTS[:3])
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    width = batch.input_ids.shape[1]
    with torch.no_grad():
        whole = model(**given, output_hidden_states=True)
        assert {state.shape[1] for state in whole.hidden_states} == {width}
        for tuples in ({"return_dict": False}, {"return_dict": False, "use_cache": False}):
            assert torch.equal(model(**given, **tuples)[0], whole.logits)
        assert model(**given, use_cache=False).past_key_values is None
        embedded = model.base.get_input_embeddings()(batch.input_ids)
        torch.testing.assert_close(
            model(inputs_embeds=embedded, attention_mask=batch.attention_mask).logits, whole.logits
        )
        if "logits_to_keep" in inspect.signature(model.base.forward).parameters:
            torch.testing.assert_close(
                model(**given, logits_to_keep=1).logits[:, 0], whole.logits[:, -1]
            )
            some = model(**given, logits_to_keep=torch.tensor([width - 3, width - 1])).logits
            torch.testing.assert_close(some, whole.logits[:, [width - 3, width - 1]])
        labels = batch.input_ids.masked_fill(~batch.prompt_mask, -100)
        loss = model(**given, labels=labels).loss
        shifted = labels[:, 1:].masked_fill(~batch.prompt_mask[:, :-1], -100)
        assert loss.item() == pytest.approx(
            F.cross_entropy(whole.logits[:, :-1].transpose(1, 2), shifted).item(), abs=1e-4
        )
        ids = batch.input_ids[batch.prompt_mask.sum(-1).argmax()][None]
        alone = model(input_ids=ids).logits
        cache = DynamicCache(config=model.base.config)
        parts = [
            model(input_ids=part, past_key_values=cache).logits
            for part in (ids[:, :2], ids[:, 2:3], ids[:, 3:])
        ]
        torch.testing.assert_close(torch.cat(parts, 1), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_caches_of_other_kinds(method):
    model = edit_model("llama", method, EDITS[:2], tokens=N)
    ids = torch.tensor([model.lm.encode_prompt(PROMPTS[1])])
    with torch.no_grad():
        with model.disable_edits():
            cache = model(input_ids=ids[:, :-1]).past_key_values
        with pytest.raises(ConfigError, match="filled without the virtual tokens"):
            model(input_ids=ids[:, -1:], past_key_values=cache)
        with pytest.raises(ConfigError, match="cache that grows"):
            model(input_ids=ids, past_key_values=StaticCache(model.base.config, max_cache_len=64))
        with pytest.raises(ConfigError, match="attention_mask"):
            model(input_ids=ids, attention_mask=torch.zeros(1, 1, ids.shape[1], ids.shape[1]))


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_context_is_lost_only_where_positions_are_counted(method):
    long = Edit("zq" * 61, "x", "zq" * 61)
    for family in ("gptj", "opt"):
        model = edit_model(family, method, [EDITS[0], long], tokens=N)
        assert len(model.edits) == 2 and len(model.ask([long.prompt])) == 1
    model = edit_model("mpt", method, EDITS[:1], tokens=N)
    with pytest.raises(PromptTooLongError, match="Shorten the prompt, or give fewer tokens"):
        model.edit([EDITS[1], long])
    assert model.edits == EDITS[:1]
    with pytest.raises(PromptTooLongError, match="5 virtual tokens"):
        model.ask([long.prompt])


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_they_learn(method):
    model = edit_model("llama", method, tokens=N, steps=30, lr=0.2, kl=0.1)
    pair = [(EDITS[0].prompt, EDITS[0].target)]
    before = model.lm.score(pair)[0].loss
    model.edit(EDITS[:1], check=False)
    assert model.lm.score(pair)[0].loss < before / 2
