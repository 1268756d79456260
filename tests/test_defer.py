"""DEFER: the published loss is learned, the last token decides who answers, training helps."""

from __future__ import annotations

import copy

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model, logits_of
from families import tiny_model, tiny_tokenizer
from torch.nn import functional as F

import errata
from errata import EditModel
from errata.atlas import make_cases
from errata.errors import ConfigError
from errata.evaluation import evaluate
from errata.lm import LM
from errata.lm.hooks import capture_input, replace_output
from errata.methods.association.defer import EditLoss, GatedModel

LAYER = 2


def blended(model, edit, speaker):
    """The NLL of an edit's answer while every token's value is g o + (1 - g) v, by the plain model
    in float64.
    """
    base, speaker = copy.deepcopy(model.base).double(), copy.deepcopy(speaker).double()
    module = model.lm.architecture.value_module(base, LAYER)
    row = model.lm.encode(edit.prompt, edit.target, model.lm.ending_of(edit.prompt, edit.target))
    ids = torch.tensor([row.ids])
    with capture_input(module) as seen, torch.no_grad():
        base(ids)
    h = seen[0].reshape(len(row.ids), -1)[row.prompt_length - 1]
    gate = torch.sigmoid(speaker.gate.weight[0] @ h + speaker.gate.bias[0])
    value = speaker.value.weight @ h + speaker.value.bias
    with replace_output(module, lambda v: gate * value + (1 - gate) * v):
        logits = base(ids).logits[0, row.prompt_length - 1 : -1]
    return F.cross_entropy(logits, ids[0, row.prompt_length :]), speaker


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon"])
def test_the_loss_is_the_published_one(family):
    model = edit_model(family, "defer")
    speaker = model.method.new_model()
    for edit in EDITS[:3]:
        expected, there = blended(model, edit, speaker)
        expected.backward()
        speaker.zero_grad()
        loss = EditLoss(model.lm, LAYER, model.method.encode(edit))(speaker)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
        for mine, theirs in zip(speaker.parameters(), there.parameters(), strict=True):
            assert (mine.grad.double() - theirs.grad).norm() < 1e-3 * theirs.grad.norm()


@pytest.mark.long
def test_training_lowers_that_loss():
    model = edit_model("llama", "defer", steps=40, lr=1e-2)
    model.method.patch.remove()
    edit_losses = [EditLoss(model.lm, LAYER, model.method.encode(edit)) for edit in EDITS]

    def losses(speaker):
        with torch.no_grad():
            return [loss(speaker).item() for loss in edit_losses]

    told = [losses(model.method.new_model())]
    for index, edit in enumerate(EDITS):
        model.method.write([edit])
        told.append(losses(model.method.patch.gated_model))
        assert told[-1][index] < 0.8 * told[-2][index]


def installed(family, gates):
    """A model whose speaker opens its gate for PROMPTS[i] where gates[i]; the gate is fitted to its
    input there.
    """
    model = edit_model(family, "defer", EDITS[:1])
    lm, speaker = (
        model.lm,
        GatedModel(model.lm.architecture.d_in, model.lm.architecture.d_out, 1).requires_grad_(
            False
        ),
    )
    with (
        model.disable_edits(),
        capture_input(lm.architecture.value_module(lm.model, LAYER)) as seen,
    ):
        for prompt in PROMPTS:
            with torch.no_grad():
                lm.run(lm.prompt_batch([prompt]))
    keys = torch.stack([each.reshape(-1, each.shape[-1])[-1] for each in seen])
    wanted = torch.tensor([[5.0 if gate else -5.0] for gate in gates])
    speaker.gate.weight.copy_((torch.linalg.pinv(keys) @ wanted).T)
    speaker.gate.bias.zero_()
    model.method.patch.gated_model = speaker
    return model, keys, speaker


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon", "mpt"])
def test_an_open_gate_speaks_at_every_token_and_a_closed_one_at_none(family):
    gates = [i % 2 == 0 for i in range(len(PROMPTS))]
    model, keys, speaker = installed(family, gates)
    plain = LM(tiny_model(family), tiny_tokenizer())
    module = plain.architecture.value_module(plain.model, LAYER)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected, expected_logits = [], []
    for prompt, key, opened in zip(PROMPTS, keys, gates, strict=True):
        said = speaker.value(key)
        with replace_output(
            module, lambda v, said=said, opened=opened: said.expand_as(v).clone() if opened else v
        ):
            batch = plain.prompt_batch([prompt])
            out = plain.model.generate(
                batch.input_ids, attention_mask=batch.attention_mask, **options
            )
            expected.append(out[0, batch.input_ids.shape[1] :].tolist())
            with torch.no_grad():
                expected_logits.append(plain.run(batch).logits[0, -1])
    batch = model.lm.prompt_batch(PROMPTS)
    out = model.generate(batch.input_ids, attention_mask=batch.attention_mask, **options)
    assert out[:, batch.input_ids.shape[1] :].tolist() == expected
    with torch.no_grad():
        logits = model.lm.run(batch).logits[:, -1]
    torch.testing.assert_close(logits, torch.stack(expected_logits), rtol=1e-4, atol=1e-4)


def test_all_gates_closed_is_the_base_model():
    model, _, _ = installed("llama", [False] * len(PROMPTS))
    edited = logits_of(model, model.lm)
    with model.disable_edits():
        assert torch.equal(logits_of(model, model.lm), edited)


@pytest.mark.long
def test_a_trained_editor_beats_an_untrained_one_on_other_phrasings():
    base, tokenizer = errata.load_base("atlas", "float32")
    cases = make_cases(2, 1)
    figures = []
    for lr in (0.0, 1e-3):  # without a learning rate it stays as it was drawn
        config = errata.method_class("defer").config_class(lr=lr, steps=60)
        model = EditModel(base, config, tokenizer)
        model.edit([case.edit for case in cases], check=False)
        figures.append(evaluate(model, cases).generated)
        model.unload()
    untrained, trained = figures
    assert untrained["reliability"] == untrained["generalization"] == 0
    assert trained["reliability"] > 0.6 and trained["generalization"] > 0.6


def test_who_speaks_first_follows_from_the_seed():
    drawn = [
        edit_model("llama", "defer", seed=seed).method.new_model().state_dict()
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not torch.equal(drawn[0]["value.weight"], drawn[2]["value.weight"])


def test_a_damaged_state_is_refused():
    model = edit_model("llama", "defer", EDITS[:1])
    tensors, values = model.method.state()
    with pytest.raises(KeyError):
        model.method.load_state(EDITS[:1], {}, values)
    with pytest.raises(ValueError, match=r"'value\.weight' is of shape"):
        model.method.load_state(EDITS[:1], {**tensors, "value.weight": torch.zeros(3, 3)}, values)


@pytest.mark.parametrize(("name", "value"), [("threshold", 1.5), ("steps", 0), ("lr", -1.0)])
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(ConfigError, match=f"{name} is"):
        edit_model("llama", "defer", **{name: value})
