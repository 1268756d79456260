"""kNN-LM over edits against its equation in float64, on the final logits; deletion; the gate."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model, edited_model, logits_of, same_state
from families import tiny_model
from grid import grid
from torch.nn import functional as F

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.errors import ConfigError
from errata.lm.hooks import capture_input
from errata.methods.association.knn_lm.method import KnnLmConfig
from errata.presets import preset

LAYER = 3
NEAR = {"layer": LAYER, "radius": 1e6}  # every prompt is in scope


def plain(family, ids, module):
    """(contexts (n, d_in), logits (n, vocabulary)) of the base model in float64."""
    base = copy.deepcopy(tiny_model(family)).double()
    with torch.no_grad(), capture_input(base.get_submodule(module)) as seen:
        logits = base(torch.tensor([ids])).logits[0]
    return seen[0].reshape(len(ids), -1), logits


def store(family, model, edits):
    contexts, tokens = [], []
    for edit in edits:
        row = model.lm.encode(
            edit.prompt, edit.target, model.lm.ending_of(edit.prompt, edit.target)
        )
        contexts.append(
            plain(family, row.ids, model.lm.architecture.value_path(LAYER))[0][
                row.prompt_length - 1 : -1
            ]
        )
        tokens += row.ids[row.prompt_length :]
    return torch.cat(contexts), torch.tensor(tokens)


def by_hand(contexts, tokens, context, logits, share, k, tau):
    """lambda p_kNN + (1 - lambda) p_LM, in float64."""
    near = (contexts - context).square().sum(-1).sort()
    weights = torch.exp(-(near.values[:k] - near.values[0]) / tau)
    p = torch.zeros_like(logits)
    for weight, token in zip(weights / weights.sum(), tokens[near.indices[:k]], strict=True):
        p[token] += weight
    return share * p + (1 - share) * logits.softmax(-1)


@grid(
    "family share k",
    [
        (family, *mixture)
        for family in ("llama", "gemma2", "cohere", "gpt2", "opt")
        for mixture in ((0.25, 4), (0.95, 100))
    ],
    lambda family, share, k: {family, share},
)
def test_the_final_choice_is_the_papers_mixture(family, share, k):
    tau = 40.0
    model = edit_model(
        family, "knn-lm", EDITS[:4], **NEAR, share=share, neighbours=k, temperature=tau
    )
    contexts, tokens = store(family, model, EDITS[:4])
    prompt, target = "The author of the book lives in", "London"
    row = model.lm.encode(prompt, target)
    own, logits = plain(family, row.ids, model.lm.architecture.value_path(LAYER))
    with (
        errata.lm.prompt_tokens(torch.arange(len(row.ids))[None] < row.prompt_length),
        torch.no_grad(),
    ):
        said = model(torch.tensor([row.ids])).logits[0].double()
    first = row.prompt_length - 1
    torch.testing.assert_close(said[:first], logits[:first], rtol=1e-4, atol=1e-4)
    for at in range(first, len(row.ids)):
        wanted = by_hand(contexts, tokens, own[at], logits[at], share, k, tau)
        torch.testing.assert_close(said[at].softmax(-1), wanted, rtol=1e-3, atol=1e-4)


def test_however_logits_are_asked_for_they_are_mixed():
    model = edit_model("llama", "knn-lm", EDITS[:3], **NEAR)
    ids = torch.tensor([model.lm.encode_prompt(PROMPTS[0])])
    labels = torch.full_like(ids, -100)
    labels[0, -2:] = ids[0, -2:]
    with torch.no_grad():
        whole = model(ids)
        for keep, columns in (
            (1, [-1]),
            (3, [-3, -2, -1]),
            (torch.tensor([0, ids.shape[1] - 1]), [0, -1]),
        ):
            torch.testing.assert_close(
                model(ids, logits_to_keep=keep).logits, whole.logits[:, columns]
            )
        assert torch.equal(model(ids, return_dict=False)[0], whole.logits)
        given = model(ids, labels=labels)
        loss, logits = model(ids, labels=labels, return_dict=False)[:2]
    expected = F.cross_entropy(given.logits[0, -3:-1], ids[0, -2:])
    torch.testing.assert_close(given.loss, expected)
    assert torch.equal(loss, given.loss) and torch.equal(logits, given.logits)
    with model.disable_edits(), torch.no_grad():
        assert not torch.equal(model(ids, labels=labels).loss, given.loss)


def test_beyond_the_radius_it_is_the_base_model_bit_for_bit():
    model = edit_model("llama", "knn-lm", EDITS[:3], layer=LAYER, radius=1e-3)
    far = [prompt for prompt in PROMPTS if prompt not in [edit.prompt for edit in EDITS[:3]]]
    with torch.no_grad():
        for prompt in PROMPTS:
            batch = model.lm.prompt_batch([prompt])
            with model.disable_edits():
                base = model.lm.run(batch).logits
            assert torch.equal(model.lm.run(batch).logits, base) == (prompt in far)
    assert model.ask(far) == model.ask_base(far)


def test_a_store_that_weighs_more_than_half_says_the_target_to_its_end():
    model = edit_model("llama", "knn-lm", **NEAR | {"radius": 1e-3})
    assert model.edit(EDITS).success_rate == 1
    assert model.ask([edit.prompt for edit in EDITS]) == [edit.target for edit in EDITS]


def test_what_the_paper_takes_for_lambda_never_contradicts_a_model_that_is_sure():
    edits = [case.edit for case in make_cases(4, 1)]
    rates = []
    for share in (0.25, 0.6, 0.95):
        base, tokenizer = errata.load_base("atlas", "float32")
        config = KnnLmConfig.from_dict({**preset("knn-lm", "atlas").settings, "share": share})
        rates.append(errata.get_edit_model(base, config, tokenizer).edit(edits).success_rate)
    assert rates == [0, 1, 1]


def test_near_an_edit_a_rephrasing_is_answered_and_elsewhere_nothing_changes():
    cases = make_cases(5, 1)
    base, tokenizer = errata.load_base("atlas", "float32")
    config = KnnLmConfig.from_dict(preset("knn-lm", "atlas").settings)
    model = errata.get_edit_model(base, config, tokenizer)
    model.edit([case.edit for case in cases], check=False)
    found = errata.evaluate(model, cases)
    assert (
        found.generated["reliability"] == found.generated["locality"] == 1
        and found.generated["generalization"] > 0.5
    )


def test_of_many_answers_to_one_question_the_latest_speaks_and_an_undo_gives_the_one_before_back(
    tmp_path,
):
    settings = {"layer": LAYER, "radius": 1e-3, "neighbours": 1}
    rivals = [
        Edit(EDITS[0].prompt, target, id=target)
        for target in ("York", "Washington", "London", "York.")
    ]
    model = edit_model("llama", "knn-lm", [*EDITS[:2], *rivals], **settings)
    model.save_pretrained(tmp_path)
    loaded = errata.EditModel.from_pretrained(tiny_model("llama"), tmp_path, model.tokenizer)
    asked = [edit.prompt for edit in EDITS[:2]]
    for each in (model, loaded):
        assert each.method.state()[0]["silenced_by"].max() >= 0
        for gone, said in (
            ("Washington", "York."),
            ("York.", "London"),
            ("London", "York"),
            ("York", EDITS[0].target),
        ):
            each.undo(gone)
            assert each.ask(asked) == [said, EDITS[1].target]
            never = edited_model("llama", "knn-lm", each.edits, **settings)
            same_state(each, never)


def test_an_undo_runs_no_model_and_leaves_what_was_never_there(monkeypatch):
    model = edit_model("llama", "knn-lm", EDITS, **NEAR)
    never = edit_model("llama", "knn-lm", [EDITS[0], *EDITS[3:]], **NEAR)
    monkeypatch.setattr(model.lm, "run", None)
    model.undo(EDITS[1].id, "home")
    monkeypatch.undo()
    same_state(model, never)
    assert torch.equal(logits_of(model, model.lm), logits_of(never, never.lm))


def test_radius_and_temperature_fit_the_model():
    scale = []
    for factor in (1.0, 10.0):
        base = tiny_model("llama")
        with torch.no_grad():  # the contexts are ten times as long, and the model says the same
            base.get_submodule(f"model.layers.{LAYER}.mlp.up_proj").weight *= factor
            base.get_submodule(f"model.layers.{LAYER}.mlp.down_proj").weight /= factor
        model = edit_model("llama", "knn-lm", layer=LAYER)
        other = errata.EditModel(base, model.method.config, model.tokenizer)
        other.edit(EDITS[:1], check=False)
        scale.append(other.method.state()[1])
    assert scale[1]["radius"] == pytest.approx(10 * scale[0]["radius"], rel=1e-3)
    assert scale[1]["tau"] == pytest.approx(100 * scale[0]["tau"], rel=1e-3)
    assert math.isfinite(scale[0]["radius"]) and scale[0]["radius"] > 0


@pytest.mark.parametrize(
    ("setting", "reason"),
    [({"share": 1.5}, "share is 1.5"), ({"neighbours": 0}, "neighbours is 0"),
     ({"radius": -1.0}, "radius is -1.0"), ({"temperature": 0.0}, "temperature is 0.0"),
     ({"background": 1}, "background is 1")],
)  # fmt: skip
def test_bad_settings_are_said(setting, reason):
    with pytest.raises(ConfigError, match=reason):
        KnnLmConfig(**setting)
