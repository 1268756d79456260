"""T-Patcher: neurons that fire where an edit's answer is due, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from edited import EDITS, edit_model, same_state
from families import tiny_model
from torch.nn import functional as F

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.errors import ConfigError
from errata.methods.association.t_patcher import Neurons, Objective, TPatcher


def answered(neurons: Neurons, keys: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    found = neurons._answer(torch.nn.Identity(), (keys,), outputs)
    return outputs if found is None else found


def test_neurons_add_what_fires_and_a_silent_token_keeps_its_bits() -> None:
    neurons, outputs = Neurons("nowhere"), torch.randn(3, 200, 4)  # more than are read at once
    keys = torch.randn(3, 200, 6)
    assert torch.equal(answered(neurons, keys, outputs), outputs)
    for name in ("one", "two"):
        neurons.add(name, torch.randn(2, 6), torch.randn(2) - 2, torch.randn(2, 4))
    neurons.add("none", torch.zeros(0, 6), torch.zeros(0), torch.zeros(0, 4))
    wanted, fired = outputs.double(), torch.zeros(3, 200)
    for stored, biases, values in neurons.columns.values():
        acts = F.relu(keys.double() @ stored.double().T + biases.double())
        wanted, fired = wanted + acts @ values.double(), fired + acts.sum(-1)
    found = answered(neurons, keys, outputs)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    silent = fired == 0
    assert silent.any() and not silent.all() and torch.equal(found[silent], outputs[silent])
    neurons.drop(["one", "two"])
    assert torch.equal(answered(neurons, keys, outputs), outputs)


def test_the_loss_is_the_papers() -> None:
    """By hand, on the whole model: the answer's NLL, and how far neurons are from firing."""
    model = edit_model("llama", "t-patcher", hardest=7, prefixes=0)
    method, edit = model.method, EDITS[0]
    assert isinstance(method, TPatcher)
    config, objective = method.config, Objective(method, edit)
    row = method.encode(edit)
    ids, begin = torch.tensor([row.ids]), row.prompt_length - 1
    with torch.no_grad():
        base = model.base(ids).logits[0, begin:-1]
    labels = ids[0, row.prompt_length :]
    wrong = (base.argmax(-1) != labels).nonzero()[:, 0]
    assert objective.count == len(wrong) > 0
    torch.manual_seed(0)
    first = objective.begin()
    parameters = [each.detach() + 0.1 * torch.randn_like(each) for each in first]
    keys, biases, values = objective.neurons(*parameters)
    states: list[torch.Tensor] = []
    module = model.lm.architecture.value_module(model.base, method.layer)
    handle = module.register_forward_hook(lambda _, args, __: states.append(args[0][0]))
    with torch.no_grad():
        model.base(ids)
        handle.remove()
        handle = module.register_forward_hook(
            lambda _, args, out: out + F.relu(args[0] @ keys.T + biases) @ values
        )
        logits = model.base(ids).logits[0, begin:-1]
    handle.remove()
    own = (states[0][begin:-1][wrong] * keys).sum(-1) + biases
    others = (method.memory @ keys.T + biases).sort(0, descending=True).values[:7]
    margin = config.margin
    wanted = (
        F.cross_entropy(logits, labels)
        + config.activate * torch.exp(-own).mean()
        + config.memorize * torch.exp(others + margin).mean()
        + config.memorize * torch.exp(others - own + margin).mean()
    )
    torch.testing.assert_close(objective.loss(*parameters), wanted, rtol=1e-3, atol=1e-3)
    fired = states[0][begin:-1][wrong] @ (first[0] * objective._unit).T
    torch.testing.assert_close(fired.diagonal(), torch.ones(len(wanted.new_zeros(len(wrong)))))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_neither_the_order_nor_the_number_of_the_others_matters(family: str) -> None:
    one, other = edit_model(family, "t-patcher"), edit_model(family, "t-patcher")
    one.edit(EDITS[:3], check=False)
    for edit in reversed(EDITS[:3]):
        other.edit([edit], check=False)
    for edit in EDITS[:3]:
        for mine, theirs in zip(
            one.method.patch.columns[edit.id], other.method.patch.columns[edit.id], strict=True
        ):
            assert torch.equal(mine, theirs)
    other.undo([edit.id for edit in EDITS[1:3]])
    same_state(other, edit_model(family, "t-patcher", EDITS[:1]))


@pytest.mark.long
def test_it_is_said_and_other_questions_keep_their_answers() -> None:
    """On atlas, with its defaults; and what the model says already needs no neuron."""
    cases = make_cases(4, seed=3)
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.TPatcherConfig(background=96), tokenizer)
    prompts = [case.edit.prompt for case in cases]
    others = [probe.prompt for case in cases for probe in case.locality]
    before = model.ask(others)
    known = Edit(others[0], before[0].removesuffix("."), id="known")
    model.edit([known, *(case.edit for case in cases)], check=False)
    assert not len(model.method.patch.columns["known"][1])
    model.method.load_state(model.edits, *model.method.state())
    answers = model.ask(prompts)
    said = [case.edit.target in answer for case, answer in zip(cases, answers, strict=True)]
    kept = [now == then for now, then in zip(model.ask(others), before, strict=True)]
    assert all(said) and sum(kept) >= 0.9 * len(kept)
    model.undo([case.edit.id for case in cases])
    assert model.ask(prompts) == model.ask_base(prompts) and model.ask(others) == before


def test_of_two_answers_to_one_question_the_later_is_said_and_an_undo_gives_the_other_back(
    tmp_path,
) -> None:
    model = edit_model("llama", "t-patcher", layer=3, steps=80, background=8)
    rival = Edit(EDITS[0].prompt, "York", "France", id="rival")
    model.edit([*EDITS[:2], rival], check=False)
    model.save_pretrained(tmp_path)
    loaded = errata.EditModel.from_pretrained(tiny_model("llama"), tmp_path, model.tokenizer)
    for each in (model, loaded):
        assert each.ask(EDITS[0].prompt) == "York"
        each.undo("rival")
        assert each.ask(EDITS[0].prompt) == EDITS[0].target
    same_state(loaded, model)


def test_bad_settings_are_said() -> None:
    with pytest.raises(ConfigError, match="hardest is 0"):
        errata.TPatcherConfig(hardest=0)
