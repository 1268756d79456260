"""A memory in front of another: what the first finds is its own, all else the second's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from edited import EDITS, PROMPTS, SMALL, edit_model, edited_model, logits_of, same_state
from families import tiny_model, tiny_tokenizer

import errata
from errata import EditModel
from errata.cli.why import as_json, lines_of
from errata.errors import ConfigError, UnknownNameError
from errata.methods import resolve
from errata.patches.outcome import Outcome, outcomes_told_to

WIDE = {
    "wise": {"threshold_ratio": 0, "threshold_quantile": 0, "false_route": 1},
    "scr": {"min_score": -1.0},
    "kv-prefix": {"min_score": -1.0},
    "knn-lm": {"radius": 1000.0},
}
"""Settings with which a method answers whatever is asked, behind another."""
LONGER = {"defer": {"lr": 0.01, "steps": 30}}
"""Where three large steps of training leave some of the first method's own edits to the second."""
NEW = 4
DEFAULT = ("rag", "lora")
BEHIND = {
    "rag": "lora wise scr kv-prefix knn-lm ft memit lora-ties",
    "grace": "wise lora rag kv-prefix scr knn-lm t-patcher adapter bitfit",
    "folio": "wise lora rag scr kv-prefix neuraldb serac",
    "kv-prefix": "wise lora",
    "serac": "wise lora rag",
    "memoir": "wise",
    "spalm": "wise",
    "defer": "lora",
    "scr": "lora",
    "ice": "lora",
}
"""First methods, and what is tried behind each."""
PAIRS = [(first, then) for first, thens in BEHIND.items() for then in thens.split()]
GRID = pytest.mark.parametrize(
    "first then".split(),
    [
        pytest.param(*pair, id="-".join(pair), marks=() if pair == DEFAULT else pytest.mark.long)
        for pair in PAIRS
    ],
)


def small(method: str, **more: Any) -> dict[str, Any]:
    """A method's settings, as it has them alone."""
    cls, own = resolve(method)
    known = {field.name for field in dataclasses.fields(cls.config_class)}
    few = {name: value for name, value in SMALL.items() if name in known}
    return {**few, **own, **more}


def named(method: str, **more: Any) -> str:
    """The same, as a pipeline is told of them."""
    settings = small(method, **more)
    return " ".join([method, *(f"{name}={value}" for name, value in settings.items())])


def alone(family: str, method: str, **more: Any) -> EditModel:
    own = resolve(method)[0].config_class.method
    return edited_model(family, own, EDITS[:3], **small(method, **more))


def piped(first: str, then: str, family: str = "llama") -> EditModel:
    texts = {
        "first": named(first, **LONGER.get(first, {})),
        "then": named(then, **WIDE.get(then, {})),
    }
    return edited_model(family, "pipeline", EDITS[:3], **texts)


def generated(model: EditModel, prompts: list[str], **options: Any) -> list[list[int]]:
    batch = model.lm.prompt_batch(prompts)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **options}
    out = model.generate(
        batch.input_ids, attention_mask=batch.attention_mask, pad_token_id=0, **options
    )
    return out[:, batch.input_ids.shape[1] :].tolist()


@GRID
@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(each, marks=pytest.mark.long) for each in ("gpt2", "bloom"))]
)
def test_each_prompt_is_answered_as_by_one_method_alone(first, then, family):
    model = piped(first, then, family)
    by = [each.by for each in model.explain(PROMPTS)]
    names = (model.method.first.name, model.method.then.name)
    assert set(by[:3]) == {names[0]} and set(by) <= {*names, ""}
    if (first, then) == DEFAULT:
        assert set(by) == {*names}
    models = (
        alone(family, first, **LONGER.get(first, {})),
        alone(family, then, **WIDE.get(then, {})),
    )
    answers = [generated(each, PROMPTS) for each in models]
    pairs = [(prompt, "two brothers in London") for prompt in PROMPTS]
    losses = [[score.loss for score in each.lm.score(pairs)] for each in models]
    own = [0 if name == names[0] else 1 for name in by]
    wanted = [answers[which][row] for row, which in enumerate(own)]

    assert generated(model, PROMPTS) == wanted, "in a batch"
    assert [generated(model, [prompt])[0] for prompt in PROMPTS] == wanted, "alone"
    assert generated(model, PROMPTS, use_cache=False) == wanted, "without a cache"
    some = PROMPTS[2:4]
    beams = {"num_beams": 2, "num_return_sequences": 2}
    assert generated(model, some, **beams) == [
        ids for prompt in some for ids in generated(model, [prompt], **beams)
    ], "beams"
    expected = [losses[which][row] for row, which in enumerate(own)]
    for side in ("left", "right"):
        found = [score.loss for score in model.lm.score(pairs, side=side)]
        assert found == pytest.approx(expected, abs=1e-4), f"padded on the {side}"


def test_both_are_written_saved_and_undone(tmp_path):
    model = piped("grace", "lora")
    for method in (model.method.first, model.method.then):
        assert [edit.id for edit in method.edits] == [edit.id for edit in EDITS[:3]]
    with torch.no_grad():
        edited = logits_of(model, model.lm)
    model.save_pretrained(tmp_path)
    loaded = EditModel.from_pretrained(tiny_model("llama"), tmp_path, tiny_tokenizer())
    assert torch.equal(logits_of(loaded, loaded.lm), edited)
    assert [each.by for each in loaded.explain(PROMPTS)] == [
        each.by for each in model.explain(PROMPTS)
    ]
    with loaded.disable_edits():
        base = logits_of(loaded, loaded.lm)
    plain = tiny_model("llama")
    assert torch.equal(base, logits_of(plain, errata.LM(plain, tiny_tokenizer())))
    model.undo(EDITS[1].id)
    texts = {"first": named("grace"), "then": named("lora")}
    same_state(model, edit_model("llama", "pipeline", [EDITS[0], EDITS[2]], **texts))
    model.undo([edit.id for edit in model.edits])
    assert torch.equal(logits_of(model, model.lm), base)


def test_what_is_cut_off_is_in_both_or_in_neither():
    model = edit_model("llama", "pipeline", EDITS[:1], first="rag", then=named("lora"))

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.edit(EDITS[1:4], check=False, progress=stop)
    first, then = model.method.first, model.method.then
    assert [e.id for e in first.edits] == [e.id for e in then.edits] == [e.id for e in EDITS[:2]]


def test_it_is_told_who_answers():
    model = piped("grace", "lora")
    found, left = model.explain([PROMPTS[0], PROMPTS[-1]])
    assert (found.by, found.outcome, left.by) == ("grace", "memory", "lora")
    assert as_json(left)["by"] == "lora" and model.explain(PROMPTS[0]).by == "grace"
    told = list(lines_of(left, {edit.id: edit for edit in model.edits}))
    assert told == ["lora answers", "memory: it names no edit"]

    rag = edited_model("llama", "pipeline", EDITS[:3], first="rag", then=named("grace"))
    assert [each.by for each in rag.explain([PROMPTS[0], PROMPTS[6]])] == ["rag", ""]
    assert rag.explain(PROMPTS[6]).outcome == "main"


@pytest.mark.long
def test_folio_says_what_it_says_in_front_of_another_too():
    model = piped("folio", "lora")
    said, left = model.explain([PROMPTS[0], PROMPTS[6]])
    assert (said.by, said.edit_id, said.outcome) == ("folio", EDITS[0].id, "say")
    assert left.by == "lora"
    heard: list[Any] = []
    with outcomes_told_to(heard.append):
        generated(model, [PROMPTS[0], PROMPTS[6]])
    assert heard == [[Outcome("say", (EDITS[0].id,)), None]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first": "lora"}, "router"),
        ({"first": "t-patcher"}, "router"),
        ({"first": "ft"}, "router"),
        ({"then": "prefix-tuning"}, "every prompt"),
        ({"then": "memoryllm"}, "every prompt"),
        ({"then": "rag"}, "both rag"),
        ({"first": "pipeline"}, "is a pipeline"),
        ({"then": "pipeline first=grace"}, "is a pipeline"),
        ({"first": "rag passages"}, "name=value"),
        ({"first": "rag end_token=false"}, "both methods"),
        ({"first": "rag passagess=2"}, "Did you mean 'passages'"),
        ({"first": "rag passages=0"}, "passages"),
        ({"then": ""}, "no method"),
        ({"then": "wisse"}, "Did you mean 'wise'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(settings, said):
    with pytest.raises((ConfigError, UnknownNameError), match=said) as error:
        config = errata.method_config("pipeline", **settings)
        EditModel(tiny_model("llama"), config, tiny_tokenizer())
    assert "\n" not in str(error.value)


def test_settings():
    config = errata.method_config(
        "pipeline", first="rag passages=2", then="wise-merge steps=7", layer=1, seed=3
    )
    first, then = config.parts
    assert (first.passages, first.layer, first.seed) == (2, 1, 3)
    assert (then.steps, then.variant, then.layer, then.seed) == (7, "merge", 1, 3)
    assert errata.PipelineConfig.from_dict(config.to_dict()) == config


@pytest.mark.long
def test_a_method_that_is_trained_is_trained_in_a_pipeline_too():
    settings = {"first": named("serac"), "then": named("mend")}
    config = errata.method_config("pipeline", layer=2, **settings)
    with pytest.raises(ConfigError, match=r"EditModel\.prepare"):
        EditModel(tiny_model("llama"), config, tiny_tokenizer()).edit(EDITS[:1])
    model = edit_model("llama", "pipeline", EDITS[:2], **settings)
    assert model.method.prepared and model.method.steps_left == 0
    assert len(model.method.first.edits) == len(model.method.then.edits) == 2
