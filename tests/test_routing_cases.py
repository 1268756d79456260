"""Routing's corners: scores and pools, caches, embeddings, missing masks, look-ahead."""

from __future__ import annotations

import copy

import pytest
import torch
from families import tiny_model
from routed import LAYER, PROMPTS, by_hand, routed
from test_routing import NEW, forward, generated, greedy, last_prompt_logits, setting

from errata.errors import ConfigError
from errata.lm import prompt_tokens
from errata.methods.association.wise.patch import SideMemory, pool_tokens
from errata.patches.routed import MAIN

FAMILY = "llama"


@pytest.fixture
def at():
    return setting(FAMILY, 3)


def expected(prompts):
    return [list(greedy(FAMILY, 3, prompt)) for prompt in prompts]


@pytest.mark.parametrize("score", ["linear", "activated"])
@pytest.mark.parametrize("pool", ["mean", "max", "last"])
def test_every_pool_and_score(score, pool):
    at = routed(FAMILY, 2, score, pool)
    lm = at.model.lm
    with at.watched() as seen:
        assert generated(at.model, lm, PROMPTS) == [
            generated(at.oracle(p).model, lm, [p])[0] for p in PROMPTS
        ]
        batch = lm.batch([lm.encode(p, "the end") for p in PROMPTS], "right")
        with prompt_tokens(batch.prompt_mask):
            forward(at.model, lm, batch)
    assert seen == [at.routes] * (NEW + 1)
    wanted = torch.tensor(
        [[by_hand(at.plain, m.delta, p, score, pool) for p in PROMPTS] for m in at.patch.memories]
    )
    torch.testing.assert_close(
        at.patch.probe(lm, PROMPTS, batch_size=3), wanted, rtol=1e-4, atol=1e-4
    )
    assert at.patch.installed


def test_pools_by_hand():
    scores = torch.tensor([[9.0, 1.0, 2.0, 6.0], [3.0, 5.0, 4.0, 9.0]])
    mask = torch.tensor([[False, True, True, True], [True, True, True, False]])
    assert pool_tokens(scores, mask, "mean").tolist() == [3, 4]
    assert pool_tokens(scores, mask, "max").tolist() == [6, 5]
    assert pool_tokens(scores, mask, "last").tolist() == [6, 4]
    assert pool_tokens(scores[None], mask, "last").tolist() == [[6, 4]]


def test_decide_takes_the_most_active_that_is_active_enough():
    patch = setting(FAMILY, 3).patch
    thresholds = [m.threshold for m in patch.memories]
    try:
        for memory, threshold in zip(patch.memories, (1.0, 5.0, 2.0), strict=True):
            memory.threshold = threshold
        acts = torch.tensor([[0.9, 2.0, 2.0], [0.5, 4.0, 1.0], [0.1, 1.0, 2.5]])
        assert patch.decide(acts).tolist() == [MAIN, MAIN, 2]
    finally:
        for memory, threshold in zip(patch.memories, thresholds, strict=True):
            memory.threshold = threshold


def test_a_second_generation_does_not_remember_the_first(at):
    lm = at.model.lm
    for prompts in (PROMPTS[:4], PROMPTS[4:], PROMPTS[3:7], PROMPTS[:4]):
        assert generated(at.model, lm, prompts) == expected(prompts)


def test_two_caches_side_by_side(at):
    lm = at.model.lm
    pair = [
        PROMPTS[at.routes.index(MAIN)],
        next(p for p, r in zip(PROMPTS, at.routes, strict=True) if r != MAIN),
    ]
    states, said = [], [[], []]
    with torch.no_grad():
        for prompt in pair:
            out = at.model(input_ids=lm.prompt_batch([prompt]).input_ids, use_cache=True)
            states.append((out.past_key_values, out.logits[:, -1].argmax(-1)))
        for _ in range(NEW):
            for i, (cache, token) in enumerate(states):
                said[i].append(int(token))
                out = at.model(
                    token[:, None], None, None, cache
                )  # the cache is found by place as well as by name
                states[i] = (out.past_key_values, out.logits[:, -1].argmax(-1))
    wanted = [
        generated(at.oracle(p).model, lm, [p], min_new_tokens=0, eos_token_id=[])[0] for p in pair
    ]
    assert said == wanted


def test_a_copied_cache_keeps_its_route(at):
    """A prompt read once and gone on from many times, as transformers' guide to caches shows it."""
    lm = at.model.lm
    for prompt in PROMPTS[:5]:
        with torch.no_grad():
            out = at.model(input_ids=lm.prompt_batch([prompt]).input_ids, use_cache=True)
            with at.watched() as seen:
                at.model(
                    input_ids=torch.tensor([[50]]),
                    past_key_values=copy.deepcopy(out.past_key_values),
                )
        assert seen == [at.routes_of([prompt])]


def test_a_tuple_as_output_keeps_the_route(at):
    lm = at.model.lm
    for prompt in PROMPTS[:5]:
        with torch.no_grad(), at.watched() as seen:
            out = at.model(
                input_ids=lm.prompt_batch([prompt]).input_ids, use_cache=True, return_dict=False
            )
            at.model(input_ids=torch.tensor([[50]]), past_key_values=out[1])
        assert seen == [at.routes_of([prompt])] * 2


@pytest.mark.parametrize("use_cache", [True, False])
def test_embeddings_instead_of_ids(at, use_cache):
    lm = at.model.lm
    batch = lm.prompt_batch(PROMPTS)
    embedded = at.model.base.get_input_embeddings()(batch.input_ids)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    with at.watched() as seen, torch.no_grad():
        logits = at.model(inputs_embeds=embedded, attention_mask=batch.attention_mask).logits
        out = at.model.generate(
            inputs_embeds=embedded,
            attention_mask=batch.attention_mask,
            use_cache=use_cache,
            **options,
        )
    assert (
        seen[0] == at.routes and seen[1] == at.routes and all(route == at.routes for route in seen)
    )
    torch.testing.assert_close(
        last_prompt_logits(logits, batch), forward(at.model, lm, batch)[:, -1], rtol=0, atol=1e-4
    )
    if use_cache:
        assert out.tolist() == expected(PROMPTS)


def test_without_an_attention_mask(at):
    lm = at.model.lm
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    batch = lm.prompt_batch(PROMPTS)
    width = batch.input_ids.shape[1]
    assert at.model.base.generation_config.pad_token_id == 0
    with at.watched() as seen:
        out = at.model.generate(batch.input_ids, **options)
    assert seen == [at.routes] * NEW and out[:, width:].tolist() == expected(PROMPTS)
    for prompt in PROMPTS[:3]:
        ids = lm.prompt_batch([prompt]).input_ids
        assert (
            at.model.generate(inputs=ids, **options)[0, ids.shape[1] :].tolist()
            == expected([prompt])[0]
        )
        with at.watched() as seen, torch.no_grad():
            at.model(ids)
        assert seen == [at.routes_of([prompt])]


def test_reading_the_prompt_in_chunks_is_refused(at):
    ids = at.model.lm.prompt_batch(PROMPTS).input_ids
    with pytest.raises(ConfigError, match="prefill_chunk_size"):
        at.model.generate(ids, prefill_chunk_size=4)
    settings = copy.deepcopy(at.model.base.generation_config)
    settings.prefill_chunk_size = 4
    with pytest.raises(ConfigError, match="prefill_chunk_size"):
        at.model.generate(ids, generation_config=settings)


@pytest.mark.parametrize(
    "ahead", ["prompt_lookup", pytest.param("assistant", marks=pytest.mark.long)]
)
def test_tokens_guessed_ahead_do_not_change_the_route(at, ahead):
    lm = at.model.lm
    options = (
        {"prompt_lookup_num_tokens": 4}
        if ahead == "prompt_lookup"
        else {"assistant_model": tiny_model(FAMILY)}
    )
    for prompt in PROMPTS:
        with at.watched() as seen:
            assert (
                generated(at.model, lm, [prompt], 12, **options)[0][:NEW] == expected([prompt])[0]
            )
        assert all(route == at.routes_of([prompt]) for route in seen)


def test_a_cache_of_fixed_size(at):
    with at.watched() as seen:
        got = generated(at.model, at.model.lm, PROMPTS, cache_implementation="static")
    assert got == expected(PROMPTS) and all(route == at.routes for route in seen)


def test_what_it_leaves_behind():
    at = routed("gpt2", 1)
    module = at.model.lm.architecture.value_module(at.model.base, LAYER)
    batch = at.plain.prompt_batch(PROMPTS)
    with at.model.disable_edits():
        assert (
            not module._forward_hooks
            and not at.model.base._forward_pre_hooks
            and not at.model.base._forward_hooks
        )
        assert torch.equal(
            forward(at.model, at.plain, batch), forward(at.plain.model, at.plain, batch)
        )
    assert len(module._forward_hooks) == 1
    empty = SideMemory(at.plain, LAYER)
    before = forward(at.plain.model, at.plain, batch)
    empty.install(at.plain)
    assert torch.equal(forward(at.plain.model, at.plain, batch), before)
    empty.remove()


def test_rows_that_fit_no_cache_are_refused(at):
    lm = at.model.lm
    with torch.no_grad():
        out = at.model(input_ids=lm.prompt_batch(PROMPTS[:2]).input_ids, use_cache=True)
        with pytest.raises(ConfigError, match="2 sequences were routed, then 3 rows"):
            at.model(input_ids=torch.full((3, 1), 50), past_key_values=out.past_key_values)
