"""How WISE learns: losses, margins that fit the model, lessons, answers that end."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
import torch
from edited import EDITS, logits_of
from edited import pinned_wise as made
from families import chat_tokenizer, tiny_model, tiny_tokenizer
from grid import grid, token_places

from errata import Edit, EditModel, WiseConfig
from errata.lm import LM
from errata.lm.weights import read_weight
from errata.methods.association.wise import method as wise
from errata.methods.association.wise.training_examples import ContrastSet, TrainingExamples

PROMPTS = [edit.prompt for edit in EDITS[:2]]
WRITTEN = [
    "Who is the mayor of Rome? Anna Bell",
    "The author of Red River is Carl Dent",
    "nothing that has a name",
    "We know that Ella Ford lives in New Haven, not in London",
]


def near_and_far(model: EditModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of the edits' prompts and of the background, of the first memory."""
    patch = model.method.patch
    prompts = [edit.prompt for edit in model.edits]
    return patch.probe(model.lm, prompts)[0], patch.probe(
        model.lm, model.method.writer.examples.prompts
    )[0]


# learning


@grid("family", [("llama",), ("gpt2",), ("opt",)], lambda family: {token_places(family)})
def test_with_steps_the_loss_falls_and_the_margin_grows(family):
    pair, losses, apart = [(EDITS[0].prompt, EDITS[0].target)], [], []
    for steps in (1, 8, 40):
        model = made(EDITS[:1], family, steps=steps, threshold_ratio=0.5)
        near, far = near_and_far(model)
        model.method.patch.memories[
            0
        ].threshold = -1.0  # whether it would be routed is not the question
        losses.append(model.lm.score(pair)[0].loss)
        apart.append((near.min() - far.max()).item())
    model.method.patch.remove()
    assert (
        losses == sorted(losses, reverse=True) and losses[2] < 0.75 * model.lm.score(pair)[0].loss
    )
    assert apart[0] < apart[1] < apart[2] and apart[2] > 0


@grid(
    "score pool",
    [*product(("linear", "activated"), ("last", "mean", "max"))],
    lambda score, pool: {score, pool},
)
def test_margins_are_trained(score, pool):
    settings = {"score": score, "pool": pool, "steps": 12}
    near, far = near_and_far(made(EDITS[:2], **settings))
    assert near.min() > far.max()
    without, outside = near_and_far(made(EDITS[:2], **settings, alpha=1e9, beta=0.0, gamma=-1e9))
    assert near.min() / far.max() > without.min() / outside.max()


def test_an_edit_that_is_learned_is_left_alone():
    """With every margin met and any loss good enough, no step is taken."""
    model = made(EDITS[:2], alpha=1e9, beta=0.0, gamma=-1e9, stop_loss=1e9)
    assert not model.method.shards[0].delta.any() and len(model.edits) == 2


def test_with_gain_a_part_of_the_change_is_enough():
    """With a gain of 2 half of the change is learned as else the whole is."""
    apart = {"alpha": 1e9, "beta": 0.0, "gamma": -1e9, "steps": 20}  # no margins
    whole = made(EDITS[:2], **apart)
    twice = made(EDITS[:2], gain=2.0, **apart)
    torch.testing.assert_close(
        twice.method.shards[0].delta / 2, whole.method.shards[0].delta, rtol=0, atol=1e-4
    )


def test_the_learning_rate_can_be_given():
    small, large = (made(EDITS[:1], lr=lr, steps=1).method.shards[0].delta for lr in (0.1, 0.2))
    torch.testing.assert_close(2 * small, large)


# margins and step size fit the model


def test_margins_follow_the_values_and_the_step_the_keys(monkeypatch):
    texts = made().method.background["texts"]
    monkeypatch.setattr(wise, "background_texts", lambda lm, count, *_, **__: texts[:count])

    def writer_of(keys: float = 1.0, values: float = 1.0, **settings: Any) -> Any:
        model = made(**settings)
        block = model.base.model.layers[2].mlp
        block.up_proj.weight.data.mul_(keys)
        block.down_proj.weight.data.mul_(values)
        return model.method.writer

    plain = writer_of()
    norm, key_norm = plain.background["value_norm"], plain.background["key_norm"]
    assert (plain.alpha, plain.beta, plain.gamma) == pytest.approx((norm / 4, norm, norm / 2))
    assert plain.lr == pytest.approx(0.06 * norm**2 / (0.2 * key_norm**2))
    scaled = writer_of(values=8.0)
    assert (scaled.alpha, scaled.beta, scaled.gamma) == pytest.approx(
        (2 * norm, 8 * norm, 4 * norm)
    )
    assert scaled.lr == pytest.approx(64 * plain.lr)
    scaled = writer_of(keys=4.0)  # then the values are four times as large as well
    assert (scaled.beta, scaled.lr) == pytest.approx((4 * norm, plain.lr))
    given = writer_of(values=8.0, alpha=0.5, beta=2.0, gamma=1.5, lr=0.25)
    assert (given.alpha, given.beta, given.gamma, given.lr) == (0.5, 2.0, 1.5, 0.25)
    halfway = writer_of(alpha=0.5)
    assert (halfway.alpha, halfway.beta, halfway.gamma) == pytest.approx((0.5, norm, norm / 2))


def test_the_same_model_in_other_units_learns_the_same():
    """Keys times 4 and values' matrix by 4: the function stays, so what the edits do to it must
    stay too.
    """
    model, other = made(steps=12), made(steps=12)
    block = other.base.model.layers[2].mlp
    block.up_proj.weight.data.mul_(4)
    block.down_proj.weight.data.div_(4)
    for each in (model, other):
        each.edit(EDITS[:2], check=False)
    torch.testing.assert_close(
        other.method.shards[0].delta * 4, model.method.shards[0].delta, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        logits_of(other, other.lm), logits_of(model, model.lm), rtol=0, atol=1e-3
    )


# training examples


def planner(
    lm: LM, texts: list[str] = WRITTEN, prefixes: list[str] | None = None, **settings: Any
) -> TrainingExamples:
    config = WiseConfig(**{"contrast": 2, "rehearse": 2, "rewordings": 0, **settings})
    return TrainingExamples(
        lm, config, {"texts": texts, "prefixes": ["So"] if prefixes is None else prefixes}
    )


@pytest.fixture
def lm() -> LM:
    return LM(tiny_model("llama"), tiny_tokenizer())


def text_of(lm: LM, row: Any, part: slice = slice(None)) -> str:
    return lm.tokenizer.decode(row.ids[part])


def test_rows_of_an_edit(lm):
    plan = planner(lm, prefixes=["So it is.", "Yes"])
    rows = plan.build(EDITS[0], [], []).in_scope
    assert [text_of(lm, row, slice(row.prompt_length)) for row in rows] == [
        EDITS[0].prompt,
        "So it is. " + EDITS[0].prompt,
        "Yes " + EDITS[0].prompt,
    ]
    for row in rows:
        assert text_of(lm, row, slice(row.prompt_length, -row.ending_length)) == " Rome"
        assert row.ids[-1] in lm.end_ids


@pytest.mark.parametrize("ending", ["", "."])
def test_answers_are_learned_to_their_end(lm, ending, monkeypatch):
    monkeypatch.setattr(LM, "ending_of", lambda *_: ending)
    row = planner(lm).row(EDITS[0])
    assert text_of(lm, row, slice(row.prompt_length, None)) == f" Rome{ending}</s>"
    model = made(EDITS[:1], steps=120, step_size=0.2)
    assert model.lm.generate([EDITS[0].prompt], max_new_tokens=20) == [f"Rome{ending}"]


def test_rehearsal_leaves_out_edits_with_the_same_prompt(lm):
    rival, others = Edit(EDITS[0].prompt, "York"), EDITS[1:5]
    plan = planner(lm, prefixes=[])
    for seed in range(5):
        edit = Edit(EDITS[0].prompt, "Rome", id=f"e{seed}")
        rows = plan.build(edit, [rival, *others], []).in_scope
        assert rows[0] == plan.row(edit) and len(rows) == 3 and len(set(rows)) == 3
        assert all(row in [plan.row(other) for other in others] for row in rows[1:])
    assert plan.build(EDITS[0], [rival], []).in_scope == [plan.row(EDITS[0])]
    assert planner(lm, prefixes=[], rehearse=0).build(EDITS[0], others, []).in_scope == [
        plan.row(EDITS[0])
    ]


def test_around_an_edit_are_other_subjects_and_other_questions(lm):
    edit = EDITS[0]
    asked = planner(lm).contrast_set(edit).contrasts
    assert asked and edit.prompt not in asked
    of_others = [prompt for prompt in asked if "France" not in prompt]
    names = ["Rome", "Anna Bell", "Red River", "Carl Dent", "Ella Ford", "New Haven", "London"]
    assert len(of_others) == 2
    assert all(prompt in [f"The capital of {name} is" for name in names] for prompt in of_others)
    about = [prompt for prompt in asked if "France" in prompt]
    assert about and set(about) <= {
        "Who is the mayor of France?",
        "The author of France is",
        "We know that France lives in New Haven, not in",
    }
    assert planner(lm, contrast=0).contrast_set(edit) == ContrastSet()
    assert (
        planner(lm).contrast_set(Edit(EDITS[3].prompt, EDITS[3].target)) == ContrastSet()
    )  # an edit without a subject
    assert planner(lm, texts=["no names at all"]).contrast_set(edit) == ContrastSet()


def test_what_is_answered_like_the_edit_is_a_rewording_of_it(lm, monkeypatch):
    asked = [
        "Who is the mayor of France?",
        "The author of France is",
        "We know that France lives in New Haven, not in",
    ]

    def said(_, prompts):
        return ["other" if prompt == asked[0] else "own" for prompt in prompts]

    monkeypatch.setattr(TrainingExamples, "answers", said)
    found = planner(lm, rewordings=4).contrast_set(EDITS[0])
    assert (
        set(found.rewordings) == set(asked[1:])
        and [p for p in found.contrasts if "France" in p] == asked[:1]
    )
    assert len(planner(lm, rewordings=1).contrast_set(EDITS[0]).rewordings) == 1
    none = planner(lm).contrast_set(EDITS[0])
    assert none.rewordings == () and not set(asked[1:]) & set(none.contrasts)

    rows = planner(lm, rewordings=4).build(EDITS[0], [], []).in_scope
    assert {text_of(lm, row, slice(row.prompt_length)) for row in rows} == {
        EDITS[0].prompt, f"So {EDITS[0].prompt}", *asked[1:],
    }  # fmt: skip
    assert all(
        text_of(lm, row, slice(row.prompt_length, -row.ending_length)) == " Rome" for row in rows
    )


def test_rewordings_are_in_scope(monkeypatch):
    reworded = "The main city of France is called"
    monkeypatch.setattr(
        TrainingExamples,
        "contrast_set",
        lambda self, edit: ContrastSet((reworded,) if self.config.rewordings else ()),
    )
    active = {}
    for count in (0, 1):
        model = made(EDITS[:1], rewordings=count, steps=40)
        patch = model.method.patch
        (active[count],) = (
            patch.probe(model.lm, [reworded])[0] / patch.memories[0].threshold
        ).tolist()
        own, far = model.method.writer._scope(EDITS[:1])
        assert own.mask.shape[0] == 1 + count and far.mask.shape[0] == 8
    assert active[1] > 1 and active[1] > active[0]


def test_prompts_of_earlier_shards_are_silent(lm):
    plan = planner(lm, contrast=0, memo=2)
    silent = [text_of(lm, row) for row in plan.build(EDITS[0], [], EDITS[1:5]).memo]
    assert len(set(silent)) == 2 and set(silent) <= {edit.prompt for edit in EDITS[1:5]}
    assert len(planner(lm, contrast=0, memo=9).build(EDITS[0], [], EDITS[1:5]).memo) == 4
    assert planner(lm, contrast=0, memo=0).build(EDITS[0], [], EDITS[1:5]).memo == []


def test_a_lesson_follows_from_seed_and_edit(lm):
    state = random.getstate(), torch.get_rng_state()
    first = planner(lm).build(EDITS[0], EDITS[1:], EDITS[1:])
    assert planner(lm).build(EDITS[0], EDITS[1:], EDITS[1:]) == first
    assert any(
        planner(lm, seed=s).build(EDITS[0], EDITS[1:], EDITS[1:]) != first for s in (1, 2, 3)
    )
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


def test_what_would_not_fit_the_context_is_skipped(lm, monkeypatch):
    long = "Zed Quark and then " + "zq" * 62
    near = Edit("France " + "zq" * 55, "x", "France")
    assert len(lm.encode_prompt(near.prompt)) < 128 <= len(lm.tokenizer(f"{long} is")["input_ids"])
    plan = planner(lm, texts=[*WRITTEN, long], prefixes=["zq" * 20])
    assert plan.prompt_row("zq" * 90) is None and plan.rephrased_row("zq" * 90, near) is None
    example = plan.build(near, [], [Edit("zq" * 90, "x"), EDITS[1]])
    assert example.in_scope == [plan.row(near)]
    assert all(
        len(row.ids) < 128
        for row in [
            *example.memo,
            *filter(None, map(plan.prompt_row, plan.contrast_set(near).contrasts)),
        ]
    )

    texts = [*WRITTEN, "zq" * 90]
    monkeypatch.setattr(
        wise, "background_texts", lambda lm, count, *_, **__: [*texts[:3], "zq" * 60]
    )
    model = made([near], contrast=2)
    assert model.edits == [near]
    model.method.background["texts"].append("zq" * 90)
    fresh = wise.ShardWriter(
        model.lm, 2, model.method.config, model.method.patch, model.method.background
    )
    assert len(fresh.examples.prompts) == 5 and fresh.background_states.mask.shape[0] == 4


# other models and tokenizers


@pytest.mark.long
@pytest.mark.parametrize("variant", ["merge", "retrieve"])
def test_a_model_in_bf16(variant, tmp_path):
    config = made(
        steps=60, step_size=0.2, contrast=2, variant=variant, edits_per_shard=1
    ).method.config
    model = EditModel(tiny_model("llama").to(torch.bfloat16), config, tiny_tokenizer())
    report = model.edit(EDITS[:1])
    assert report.success_rate == 1 and model.ask_base(PROMPTS[:1]) != model.ask(PROMPTS[:1]) == [
        "Rome"
    ]
    model.edit(EDITS[1:2], check=False)
    assert all(shard.delta.dtype == torch.float32 for shard in model.method.shards)
    module = model.lm.architecture.value_module(model.base, 2)
    assert read_weight(module).dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    loaded = EditModel.from_pretrained(
        tiny_model("llama").to(torch.bfloat16), tmp_path, tiny_tokenizer()
    )
    assert loaded.ask(PROMPTS) == model.ask(PROMPTS)
    model.undo(*(edit.id for edit in EDITS[:2]))
    assert model.ask(PROMPTS) == model.ask_base(PROMPTS)


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.long)])
def test_a_model_that_chats(family, tmp_path):
    config = made(steps=60, step_size=0.2, contrast=2).method.config
    model = EditModel(tiny_model(family), config, chat_tokenizer())
    report = model.edit(EDITS[:1])
    assert report.success_rate == 1 and model.ask(PROMPTS[:1]) == ["Rome"]
    row = model.method.writer.examples.row(EDITS[0])
    asked = "<s>user: The capital of France is\nassistant:"
    assert (
        text_of(model.lm, row, slice(row.prompt_length)) == asked
        and row.ids[-1] in model.lm.end_ids
    )
    behind = model.method.writer.examples.rephrased_row(f"So {EDITS[0].prompt}", EDITS[0])
    assert text_of(model.lm, behind).startswith("<s>user: So The capital of France is\nassistant:")
    model.save_pretrained(tmp_path)
    loaded = EditModel.from_pretrained(tiny_model(family), tmp_path, chat_tokenizer())
    assert loaded.ask(PROMPTS) == model.ask(PROMPTS)
    model.undo(EDITS[0].id)
    assert model.ask(PROMPTS) == model.ask_base(PROMPTS)
