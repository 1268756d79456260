"""Memoria: engrams that come to mind, live on, move to long-term memory, or are forgotten."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
import torch
from edited import EDITS, EXAMPLES, PROMPTS, edit_model, edited_model, same_state
from families import HIDDEN, N_LAYERS, tiny_model, tiny_tokenizer

import errata
from errata import EditModel
from errata.errors import ConfigError
from errata.lm.encoding import Row
from errata.methods.association.memoria.memory import EngramMemory, MemorySizes

OTHER = "x"
"""A prompt that no edit is found for."""


def even(new: Sequence[int], others: Sequence[int]) -> torch.Tensor:
    return torch.full((len(others),), 1 / len(others))


def memory(shares=even, **sizes: float) -> EngramMemory:
    given = {
        "short_term": 100, "reminded_short_term": 1, "reminded_long_term": 1, "search_depth": 3,
        "lifespan": 3, "lifespan_gain": 0.0, **sizes,
    }  # fmt: skip
    return EngramMemory(MemorySizes(**given), shares)


def at(*places: float) -> torch.Tensor:
    """Engrams on a line."""
    return torch.tensor([[place, 0.0] for place in places])


# the memories


def test_what_never_comes_to_mind_is_forgotten_after_its_lifespan() -> None:
    kept = memory(reminded_short_term=1)
    for place in range(4):
        kept.write(at(10.0 * place))
    assert kept.lifespans == {2: 1.0, 3: 2.0}
    assert kept.reminded(at(1.0)) == [2]  # the nearest that is left


def test_attention_prolongs_lives_by_its_share() -> None:
    asked = []

    def shares(new: Sequence[int], others: Sequence[int]) -> torch.Tensor:
        asked.append((list(new), list(others)))
        return torch.tensor([0.75, 0.25])

    kept = memory(shares, reminded_short_term=2, lifespan_gain=4.0, lifespan=5)
    kept.write(at(0.0, 1.0))
    assert kept.lifespans == {0: 4.0, 1: 4.0} and not asked
    kept.write(at(0.0, 1.0))
    assert asked == [([2, 3], [0, 1])]
    # gained: 4 x the share over the average share of 1/2; lost: 1
    assert kept.lifespans == {0: 4 + 4 * 1.5 - 1, 1: 4 + 4 * 0.5 - 1, 2: 4.0, 3: 4.0}


def test_the_nearest_of_short_term_memory_come_to_mind() -> None:
    draw = torch.Generator().manual_seed(0)
    kept, stored = memory(reminded_short_term=4, lifespan=99), torch.randn(6, 2, 8, generator=draw)
    for engrams in stored:
        kept.write(engrams)
    asked = torch.randn(2, 8, generator=draw)
    apart = (stored.flatten(0, 1)[:, None] - asked[None]).square().sum(-1).mean(-1)
    assert kept.reminded(asked) == sorted(apart.argsort()[:4].tolist())


def test_the_oldest_move_to_long_term_memory_and_come_to_mind_with_what_they_fired_with() -> None:
    kept = memory(short_term=2, lifespan=99)
    kept.write(at(0.0))
    kept.write(at(50.0))
    kept.write(at(1.0))  # reminds of 0, which fires with it, and moves on
    assert kept.in_long_term == {0}
    kept.write(at(51.0))  # reminds of 1, which moves on
    assert kept.in_long_term == {0, 1}
    assert kept.reminded(at(2.0)) == [0, 2]
    assert kept.reminded(at(52.0)) == [1, 3]


def test_asking_is_not_writing() -> None:
    kept = memory(reminded_short_term=2, lifespan=9, lifespan_gain=1.0)
    kept.write(at(0.0, 4.0))
    kept.write(at(9.0, 1.0))
    before = kept.lifespans, kept._memory.engrams.induce_counts.clone()
    assert [kept.reminded(at(place)) for place in (9.0, 1.0, 9.0)] == [[1, 2], [0, 3], [1, 2]]
    assert kept.lifespans == before[0] and len(kept) == 4
    assert torch.equal(kept._memory.engrams.induce_counts, before[1])


def test_an_empty_memory_reminds_of_nothing() -> None:
    assert memory().reminded(at(1.0)) == [] and memory().lifespans == {}
    assert memory().in_long_term == set() and len(memory()) == 0


# the method


def chosen(model: EditModel, prompts: list[str]) -> list[tuple[str, ...]]:
    ids = [tuple(model.lm.encode_prompt(text)) for text in prompts]
    with model.disable_edits():
        return model.method.patch.chosen(model.lm, ids)


def test_a_prompt_reads_all_engrams_of_a_found_edit_of_which_one_comes_to_mind() -> None:
    model = edited_model("llama", "memoria", EDITS, engrams=3, reminded_short_term=4)
    method = model.method
    assert len(method.memory) == 3 * len(EDITS)
    with model.disable_edits():
        ids = tuple(model.lm.encode_prompt(PROMPTS[0]))
        (states,) = method.states([Row(ids, len(ids))])
        every = method.context(PROMPTS[0], EDITS)
        assert method.context(PROMPTS[0], EDITS[:0]) == ()
    last = states[-1:] / states[-1:].square().mean().sqrt()
    minds = {number // 3 for number in method.memory.reminded(last)}
    assert 0 < len(minds) < len(EDITS)
    assert every == tuple(str(3 * edit + slot) for edit in sorted(minds) for slot in range(3))
    (read,) = chosen(model, PROMPTS[:1])
    assert {int(name) // 3 for name in read} <= minds
    for name in every:
        edit, slot = divmod(int(name), 3)
        passage = method.patch.passages[name]
        stored = method._texts[EDITS[edit].id].states[slot]
        assert torch.equal(passage.states, stored[None]) and passage.answer == method.before - slot
    assert chosen(model, [OTHER]) == [()]


def test_what_is_forgotten_is_answered_by_the_base_model_bit_for_bit() -> None:
    model = edited_model("llama", "memoria", EDITS[:1], lifespan=1, lifespan_gain=0.0)
    assert not model.method.memory.lifespans and chosen(model, PROMPTS[:1]) == [()]
    batch = model.lm.prompt_batch(PROMPTS[:3])
    with torch.no_grad():
        edited = model.lm.run(batch).logits
        with model.disable_edits():
            assert torch.equal(edited, model.lm.run(batch).logits)
    later = edited_model("llama", "memoria", EDITS, lifespan=2, lifespan_gain=0.0)
    assert {number // 8 for number in later.method.memory.lifespans} == {len(EDITS) - 1}


def test_undo_is_as_if_it_had_never_been_written() -> None:
    model = edited_model("llama", "memoria", EDITS)
    model.undo(EDITS[1].id)
    never = edited_model("llama", "memoria", [EDITS[0], *EDITS[2:]])
    same_state(model, never)
    assert model.method.memory.lifespans == never.method.memory.lifespans
    assert chosen(model, PROMPTS) == chosen(never, PROMPTS)
    model.edit([EDITS[1]], check=False)
    last = edited_model("llama", "memoria", [EDITS[0], *EDITS[2:], EDITS[1]])
    assert model.method.memory.lifespans == last.method.memory.lifespans


def test_one_after_the_other_is_as_all_at_once() -> None:
    at_once, singly = (edited_model("llama", "memoria", EDITS[:count]) for count in (5, 1))
    for edit in EDITS[1:5]:
        singly.edit([edit], check=False)
    assert singly.method.memory.lifespans == at_once.method.memory.lifespans
    assert chosen(singly, PROMPTS) == chosen(at_once, PROMPTS)


def test_engrams_are_at_first_what_the_encoder_block_made_at_their_places() -> None:
    config = errata.MemoriaConfig(engrams=8)
    method = EditModel(tiny_model("llama"), config, tiny_tokenizer()).method
    assert method.before == 2
    row = method.encode(EDITS[0])
    (states,) = method.states([row])
    states = states / states.square().mean(-1, keepdim=True).sqrt()
    (passage,) = method.read([row])
    assert passage.states.shape == (8, HIDDEN) and passage.answer == 2
    places = range(row.prompt_length - 2, len(row.ids))
    assert len(places) >= 4
    for slot, place in enumerate(places[:8]):
        alike = torch.cosine_similarity(passage.states[slot : slot + 1], states)
        assert alike.argmax() == place and alike[place] > 0.9


def test_engrams_are_found_by_what_the_encoder_block_made_of_the_prompts_last_token() -> None:
    model = edited_model("llama", "memoria", EDITS, engrams=8, lifespan=99)
    method = model.method
    for number, edit in enumerate(EDITS):
        row = method.encode(edit)
        with model.disable_edits():
            (states,) = method.states([row])
        last = states[row.prompt_length - 1]
        found_by = method._texts[edit.id].states[8]
        torch.testing.assert_close(found_by, last / last.square().mean().sqrt())
        own = range(8 * number, 8 * number + 8)
        assert method.memory.reminded(found_by[None]) == list(own)


def test_training_reaches_the_abstractor_too() -> None:
    settings = {"training_steps": 2, "asked": 4, "background": 32, "passages": 2}
    model = EditModel(
        tiny_model("llama"), errata.MemoriaConfig.from_dict(settings), tiny_tokenizer()
    )
    before = {name: each.clone() for name, each in model.method.network.named_parameters()}
    assert {name.split(".")[0] for name in before} == {"attentions", "abstractor"}
    model.prepare(EXAMPLES)
    for name, parameter in model.method.network.named_parameters():
        if name == "abstractor.key_transform.bias":  # moves all keys alike, so it changes nothing
            continue
        assert not torch.equal(parameter, before[name]), name
        assert not parameter.requires_grad


def test_bad_settings_and_a_missing_package_are_refused_in_a_line(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="engrams"):
        errata.MemoriaConfig(engrams=0)
    with pytest.raises(ConfigError, match=f"no layer {N_LAYERS}"):
        edit_model("llama", "memoria", EDITS[:1], first_block=N_LAYERS)
    model = edited_model("llama", "memoria", EDITS[:2])
    tensors, values = model.method.state()
    tensors |= {"lengths": torch.tensor([10, 8])}
    with pytest.raises(ValueError, match="lengths"):
        model.method.load_state(EDITS[:2], tensors, values)
    monkeypatch.setitem(sys.modules, "memoria", None)
    with pytest.raises(ConfigError, match="pip install 'errata\\[memoria\\]'"):
        EditModel(tiny_model("llama"), errata.MemoriaConfig(), tiny_tokenizer())
