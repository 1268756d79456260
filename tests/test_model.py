"""What `EditModel` promises, kept by every method on every kind of model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from edited import (
    EDITS,
    FAMILIES,
    IDS,
    KINDS,
    LIKE_ANOTHER,
    PROMPTS,
    VARIANTS,
    edit_model,
    edited_model,
    logits_of,
    prepare,
    same_state,
)
from families import tiny_model, tiny_tokenizer
from grid import grid, patch_kind

import errata
from errata import Edit, EditModel
from errata.errors import BaseMismatchError, EditError, PromptTooLongError, UnknownNameError
from errata.lm import LM

WRITTEN, NEXT = EDITS[:3], EDITS[3]
"""What is written fills a part of what a method fills (a shard, a turn), and half of another."""
FEW = 4
"""New tokens of an answer where only the same is asked of two."""
MADE = {name for name, _ in KINDS} - LIKE_ANOTHER
"""A method for each kind of patch, and of what it keeps from edit to edit."""
ONCE_EVERYWHERE = grid(
    "family method settings",
    [(family, *variant) for variant in VARIANTS for family in FAMILIES],
    lambda family, method, settings: ({method} & MADE) | {(family, patch_kind(method))},
    [f"{name}-{family}" for name in IDS for family in FAMILIES],
)
"""Each kind of patch meets every family, each kind of what is kept a family."""
FOR_EACH_PATCH = grid(
    "method settings", VARIANTS, lambda method, settings: {patch_kind(method)}, IDS
)
"""A method for each kind of patch."""
FOR_EACH_KIND = grid(
    "method settings",
    VARIANTS,
    lambda method, settings: {method} & MADE,
    IDS,
)


@ONCE_EVERYWHERE
def test_saved_loaded_and_gone_on_with(family, method, settings, tmp_path):
    model = edited_model(family, method, WRITTEN, **settings)
    before = logits_of(model, model.lm)
    model.save_pretrained(tmp_path / "a")
    loaded = EditModel.from_pretrained(tiny_model(family), tmp_path / "a", tiny_tokenizer())
    assert loaded.edits == WRITTEN and loaded.method.config == model.method.config
    assert torch.equal(logits_of(loaded, loaded.lm), before)
    assert torch.equal(logits_of(model, model.lm), before), "saving changed the model"
    assert loaded.ask(PROMPTS, max_new_tokens=FEW) == model.ask(PROMPTS, max_new_tokens=FEW)
    same_state(loaded, model)
    for each in (model, loaded):
        each.edit(NEXT, check=False)
    same_state(loaded, model)
    assert torch.equal(logits_of(loaded, loaded.lm), logits_of(model, model.lm))
    with pytest.raises(BaseMismatchError, match="Give the model they were written for"):
        other = "opt" if family == "llama" else "llama"
        EditModel.from_pretrained(tiny_model(other), tmp_path / "a", tiny_tokenizer())


@ONCE_EVERYWHERE
def test_disabled_it_is_the_base_model_bit_for_bit(family, method, settings):
    base = LM(tiny_model(family), tiny_tokenizer())
    expected, weights = logits_of(base.model, base), base.model.state_dict()
    answers = base.generate(PROMPTS, max_new_tokens=FEW)
    model = edited_model(family, method, WRITTEN, **settings)

    def is_base(asked=False):
        now = model.base.state_dict()
        assert now.keys() == weights.keys() and all(
            torch.equal(now[name], weights[name]) for name in weights
        )
        assert torch.equal(logits_of(model, model.lm), expected)
        if asked:
            assert (
                model.ask(PROMPTS, max_new_tokens=FEW)
                == answers
                == model.ask_base(PROMPTS, max_new_tokens=FEW)
            )

    edited = logits_of(model, model.lm)
    assert not torch.equal(edited, expected)
    with model.disable_edits():
        is_base(asked=True)
        with model.disable_edits():
            is_base()
        is_base()
    assert torch.equal(logits_of(model, model.lm), edited)
    with pytest.raises(ZeroDivisionError), model.disable_edits():
        raise ZeroDivisionError
    assert torch.equal(logits_of(model, model.lm), edited)
    assert model.ask_base(PROMPTS, max_new_tokens=FEW) == answers and torch.equal(
        logits_of(model, model.lm), edited
    )
    model.undo(*(edit.id for edit in WRITTEN))
    assert model.edits == []
    is_base(asked=True)
    model.edit(EDITS[:1], check=False)
    freed = LM(model.unload(), tiny_tokenizer())
    assert (
        torch.equal(logits_of(freed.model, freed), expected)
        and freed.generate(PROMPTS, max_new_tokens=FEW) == answers
    )


@ONCE_EVERYWHERE
def test_undone_is_as_never_done(family, method, settings):
    settings = {**settings, **({"edits_per_shard": 10} if method == "wise" else {})}
    model = edited_model(family, method, WRITTEN, **settings)
    model.undo(EDITS[1].id, "home")
    left = [edit for edit in WRITTEN if edit not in EDITS[1:3]]
    never = edit_model(family, method, left, **settings)
    same_state(model, never, 1e-5)
    torch.testing.assert_close(
        logits_of(model, model.lm), logits_of(never, never.lm), rtol=0, atol=1e-5
    )
    with pytest.raises(UnknownNameError, match="no edit has the id 'home'"):
        model.undo(EDITS[0].id, "home")
    assert model.edits == left
    model.edit([EDITS[1]], check=False)
    never.edit([EDITS[1]], check=False)
    same_state(model, never, 1e-5)


@FOR_EACH_KIND
def test_one_call_is_as_many(method, settings, family="llama"):
    at_once = edited_model(family, method, WRITTEN, **settings)
    one_by_one = edit_model(family, method, **settings)
    for edit in WRITTEN:
        one_by_one.edit([edit], check=False)
    same_state(at_once, one_by_one, 1e-5)
    torch.testing.assert_close(
        logits_of(at_once, at_once.lm), logits_of(one_by_one, one_by_one.lm), rtol=0, atol=1e-4
    )


@FOR_EACH_KIND
def test_one_seed_gives_the_same_bytes(method, settings, tmp_path):
    edited_model("llama", method, WRITTEN, **settings).save_pretrained(tmp_path / "a")
    torch.manual_seed(1)  # which is nobody's
    edit_model("llama", method, WRITTEN, **settings).save_pretrained(tmp_path / "b")
    for file in ("edit_config.json", "edit_model.safetensors", "edits.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@FOR_EACH_PATCH
def test_reports_duplicates_conflicts_and_ids(method, settings):
    model = edit_model("llama", method, **settings)
    done = []
    report = model.edit(EDITS[:2], progress=done.append)
    assert sum(done) == 2 and [r.edit for r in report.results] == EDITS[:2]
    assert [r.answer for r in report.results] == model.ask(PROMPTS[:2])
    wins = sum(r.success for r in report.results)
    assert report.success_rate == wins / 2 and not report.skipped and not report.conflicts

    before = logits_of(model, model.lm)
    again = model.edit([EDITS[0], EDITS[0]])
    assert again.skipped == [EDITS[0].id] * 2 and again.results == [] and again.success_rate is None
    assert model.edits == EDITS[:2] and torch.equal(logits_of(model, model.lm), before)
    with pytest.raises(EditError, match="already belongs to another edit"):
        model.edit([EDITS[2], Edit("Who?", "x", id=EDITS[0].id)])
    assert model.edits == EDITS[:2]

    rival = Edit(EDITS[0].prompt, "Washington", "France")
    report = model.edit([rival, EDITS[2], EDITS[2]], check=False)
    assert (
        report.conflicts == [(rival.id, EDITS[0].id)]
        and report.skipped == ["home"]
        and report.results == []
    )
    assert model.edits == [*EDITS[:2], rival, EDITS[2]]
    with pytest.raises(PromptTooLongError):
        model.edit([EDITS[3], Edit("zq" * 200, "x", "zq" * 200)])
    assert model.edits == [*EDITS[:2], rival, EDITS[2]]
    assert model.edit([]).results == []


@FOR_EACH_PATCH
def test_a_prompt_that_just_fits_the_context_can_be_edited(method, settings):
    """It fits by itself; nothing that a method puts before it may break the write, least of all
    half-way.
    """
    near = Edit("zq" * 61, "x", "zq" * 61)
    model = edit_model("llama", method, [EDITS[3], near], **settings)
    assert model.edits == [EDITS[3], near]


@FOR_EACH_KIND
def test_it_looks_like_the_base_model(method, settings):
    model = edited_model("llama", method, WRITTEN, **settings)
    assert model.config is model.base.config and model.device == model.base.device
    assert not model.training and not any(p.requires_grad for p in model.base.parameters())
    batch = model.lm.prompt_batch(PROMPTS)
    out = model.generate(
        batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=5, pad_token_id=0
    )
    texts = [model.lm.decode(row) for row in out[:, batch.input_ids.shape[1] :].tolist()]
    assert texts == model.ask(PROMPTS, max_new_tokens=5)
    more = model.generate(
        batch.input_ids[:2], num_beams=2, num_return_sequences=2, max_new_tokens=3
    )
    assert more.shape[0] == 4
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    with torch.no_grad():
        assert math.isfinite(model(input_ids=batch.input_ids, labels=labels).loss)
    with pytest.raises(AttributeError):
        _ = model.no_such_thing


LEARNING = {
    "wise": {"steps": 60, "step_size": 0.2},
    "retrieve": {"steps": 60, "step_size": 0.2, "variant": "retrieve"},
    "ft": {"steps": 80, "lr": 0.02, "objective": "target_new"},
}


@grid(
    "family name",
    [(family, name) for family in ("llama", "gpt2") for name in LEARNING],
    lambda family, name: {family, name},
)
def test_it_learns(family, name):
    """Random models are stubborn, so many steps; the edit's own prompt is answered freely, to its
    end, with the target.
    """
    model = edit_model(family, "ft" if name == "ft" else "wise", **LEARNING[name])
    pair = [(EDITS[0].prompt, EDITS[0].target)]
    before = model.lm.score(pair)[0].loss
    report = model.edit(EDITS[:1])
    assert model.lm.score(pair)[0].loss < before / 2
    assert report.success_rate == 1 and report.results[0].answer == EDITS[0].target
    assert model.ask_base([EDITS[0].prompt]) != [EDITS[0].target]


def test_of_two_answers_to_one_question_the_later_wins():
    model = edit_model(
        "llama", "wise", steps=60, step_size=0.2, gain=1.0, contrast=0, false_route=1.0
    )
    rival = Edit(EDITS[0].prompt, "York")
    report = model.edit([EDITS[0], rival])
    assert report.conflicts == [(rival.id, EDITS[0].id)]
    assert model.ask([rival.prompt]) == ["York"]
    assert [result.success for result in report.results] == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@FOR_EACH_PATCH
def test_half_precision(method, settings, dtype, tmp_path):
    config = edit_model("llama", method, **settings).method.config
    model = EditModel(tiny_model("llama").to(dtype), config, tiny_tokenizer())
    prepare(model)
    weights = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    model.edit(EDITS[:2], check=False)
    edited = logits_of(model, model.lm)
    assert edited.isfinite().all()
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "edit_config.json").read_text())
    assert about["base_dtype"] == str(dtype).removeprefix("torch.")
    loaded = errata.EditModel.from_pretrained(
        tiny_model("llama").to(dtype), tmp_path, tiny_tokenizer()
    )
    assert torch.equal(logits_of(loaded, loaded.lm), edited)
    with model.disable_edits():
        assert all(
            torch.equal(tensor, weights[name]) for name, tensor in model.base.state_dict().items()
        )
