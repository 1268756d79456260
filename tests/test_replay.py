"""Fine-tuning with replay: what is replayed and when, and that every step is plain Adam."""

from __future__ import annotations

import copy

import pytest
import torch
from edited import EDITS, edit_model, same_state
from families import tiny_model, tiny_tokenizer
from torch.nn import functional as F

from errata import EditModel
from errata.errors import ConfigError
from errata.methods.mastery.replay import Replay


class Adam:
    """Adam by its equations, float64."""

    def __init__(self, lr):
        self.lr, self.mean, self.square, self.count = lr, 0.0, 0.0, 0

    def step(self, weight, gradient):
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient.square()
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        return weight - self.lr * mean / (square.sqrt() + 1e-8)


def by_the_rules(model, edits, config):
    """The delta after all edits, by the plain model in float64, without a tail."""
    base = copy.deepcopy(model.base).double()
    module = base.get_submodule(model.method.path)
    start = module.weight.detach().clone()

    def step(adam, edit, only_if_wrong=False):
        row = model.lm.encode(
            edit.prompt, edit.target, model.lm.ending_of(edit.prompt, edit.target)
        )
        ids = torch.tensor([row.ids])
        weight = module.weight.requires_grad_()
        logits, labels = (
            base(ids).logits[0, row.prompt_length - 1 : -1],
            ids[0, row.prompt_length :],
        )
        if only_if_wrong and torch.equal(logits.argmax(-1), labels):
            return
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), weight)
        module.weight = torch.nn.Parameter(adam.step(weight.detach(), gradient))

    for n, edit in enumerate(edits, start=1):
        if n % config.every == 0:
            adam = Adam(config.lr)
            for _ in range(config.epochs):
                for earlier in edits[max(0, n - (config.memory or n)) : n]:
                    step(adam, earlier)
        adam = Adam(config.lr)
        for _ in range(config.steps):
            step(adam, edit, only_if_wrong=True)
    return module.weight.detach() - start


@pytest.mark.parametrize(("every", "memory"), [(2, None), (3, 2), (2, 10), (50, None)])
def test_it_is_adam_on_the_edit_and_on_the_history(every, memory):
    model = edit_model("llama", "replay", steps=2, lr=1e-3, every=every, memory=memory, epochs=2)
    expected = by_the_rules(model, EDITS[:4], model.method.config)
    model.edit(EDITS[:4], check=False)
    moved = model.method.patch.deltas[model.method.path].double()
    assert (moved - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize(
    ("every", "memory", "expected"),
    [
        (2, None, {2: [0, 1], 4: [0, 1, 2, 3], 6: [0, 1, 2, 3, 4, 5]}),
        (3, 2, {3: [1, 2], 6: [4, 5]}),
        (2, 3, {2: [0, 1], 4: [1, 2, 3], 6: [3, 4, 5]}),
        (4, 50, {4: [0, 1, 2, 3]}),
        (50, 50, {}),
    ],
)
def test_what_is_replayed_and_when(every, memory, expected, monkeypatch):
    replayed = {}
    history = Replay.history

    def noted(method, edit):
        found = history(method, edit)
        if found:
            replayed[len(method.edits) + 1] = [EDITS.index(earlier) for earlier in found]
        return found

    monkeypatch.setattr(Replay, "history", noted)
    edit_model("llama", "replay", EDITS, every=every, memory=memory, epochs=1, steps=1)
    assert replayed == expected


@pytest.mark.long
def test_replay_keeps_what_fine_tuning_forgets():
    losses = []
    for every in (50, 3):
        model = edit_model("llama", "replay", EDITS, steps=30, lr=1e-2, every=every, epochs=20)
        losses.append(
            sum(
                score.loss
                for score in model.lm.score([(edit.prompt, edit.target) for edit in EDITS[:-1]])
            )
        )
    assert losses[1] < 0.5 * losses[0]


def test_saved_in_the_middle_and_gone_on_with(tmp_path):
    """The history is the ledger: what was learned before saving is replayed after loading."""
    whole = edit_model("llama", "replay", EDITS, every=4, epochs=2)
    half = edit_model("llama", "replay", EDITS[:2], every=4, epochs=2)
    half.save_pretrained(tmp_path)
    loaded = EditModel.from_pretrained(tiny_model("llama"), tmp_path, tiny_tokenizer())
    loaded.edit(EDITS[2:], check=False)
    same_state(loaded, whole)


@pytest.mark.parametrize("name", ["every", "epochs", "memory", "steps"])
def test_settings_that_make_no_sense(name):
    with pytest.raises(ConfigError, match=f"{name} is 0; it must lie between 1"):
        edit_model("llama", "replay", **{name: 0})
