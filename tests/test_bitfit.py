"""BitFit against its equations in float64, and what its divergence term holds."""

from __future__ import annotations

import copy

import pytest
import torch
from edited import EDITS, edit_model
from torch.nn import functional as F

from errata.solvers.adapters import divergence

PLAIN = {"prefixes": 0, "batch": 4, "background": 16}
BOTH = pytest.mark.parametrize("family", ["llama", "gpt2"])


class Plain:
    """The base model in float64, with c added to what each value matrix says."""

    def __init__(self, model):
        with model.disable_edits():
            self.lm, self.base = model.lm, copy.deepcopy(model.base).double()
            self.row = self.lm.encode(
                EDITS[0].prompt,
                EDITS[0].target,
                self.lm.ending_of(EDITS[0].prompt, EDITS[0].target),
            )
        self.paths = [
            self.lm.architecture.value_path(layer) for layer in range(self.lm.architecture.n_layers)
        ]

    def logits(self, ids, biases):
        hooks = [
            self.base.get_submodule(path).register_forward_hook(lambda _, args, out, c=c: out + c)
            for path, c in zip(self.paths, biases, strict=True)
        ]
        logits = self.base(torch.tensor([ids])).logits[0]
        for hook in hooks:
            hook.remove()
        return logits

    def loss(self, biases, kl, texts):
        row = self.row
        picked = self.logits(row.ids, biases)[row.prompt_length - 1 : -1]
        nll = F.cross_entropy(picked, torch.tensor(row.ids[row.prompt_length :]))
        nothing = [torch.zeros_like(c) for c in biases]
        told = []
        for text in texts:
            ids = self.lm.encode_prompt(text)
            p, q = (F.log_softmax(self.logits(ids, those), -1) for those in (nothing, biases))
            told.append((p.exp() * (p - q)).sum(-1))
        return nll + kl * torch.cat(told).mean()


def said(model, batch):
    with torch.no_grad():
        return F.log_softmax(model.lm.run(batch).logits[batch.attention_mask.bool()], -1)


def trained(model):
    return [model.method.trained.parameters[f"{path}.bias"].double() for path in model.method.paths]


@BOTH
def test_a_bias_is_added_to_what_each_value_matrix_says(family):
    model = edit_model(family, "bitfit", EDITS[:1], layer=None, lr=0.1)
    plain = Plain(model)
    with torch.no_grad():
        logits = model.base(torch.tensor([plain.row.ids])).logits[0]
        torch.testing.assert_close(
            logits.double(), plain.logits(plain.row.ids, trained(model)), rtol=0, atol=1e-4
        )
        nothing = plain.logits(plain.row.ids, [torch.zeros_like(c) for c in trained(model)])
    assert (logits - nothing).abs().max() > 1e-2
    assert {name.rpartition(".")[2] for name in model.method.state()[0]} == {"bias"}


@BOTH
def test_steps_are_adam_on_loss_and_divergence(family):
    lr, kl, steps = 1e-2, 50.0, 4
    model = edit_model(family, "bitfit", EDITS[:1], layer=None, lr=lr, kl=kl, steps=steps, **PLAIN)
    draw = torch.Generator().manual_seed(0)
    texts = model.method.trainer.texts()[0]
    drawn = [texts[i] for i in sorted(torch.randperm(len(texts), generator=draw)[:4].tolist())]
    plain = Plain(model)
    biases = [torch.zeros_like(c) for c in trained(model)]
    means, squares = ([torch.zeros_like(c) for c in biases] for _ in range(2))
    for step in range(1, steps + 1):
        leaves = [c.clone().requires_grad_() for c in biases]
        for i, g in enumerate(torch.autograd.grad(plain.loss(leaves, kl, drawn), leaves)):
            means[i], squares[i] = 0.9 * means[i] + 0.1 * g, 0.999 * squares[i] + 0.001 * g.square()
            biases[i] = biases[i] - lr * (means[i] / (1 - 0.9**step)) / (
                (squares[i] / (1 - 0.999**step)).sqrt() + 1e-8
            )
    for found, expected in zip(trained(model), biases, strict=True):
        assert (found - expected).norm() < 1e-2 * expected.norm()


@BOTH
def test_it_learns_and_the_divergence_holds_the_rest(family):
    pair = [(EDITS[0].prompt, EDITS[0].target)]
    moved = {}
    for kl in (0.0, 1.0):
        model = edit_model(family, "bitfit", layer=None, steps=40, lr=0.03, kl=kl, **PLAIN)
        before = model.lm.score(pair)[0].loss
        texts = model.lm.prompt_batch([text for text in model.method.trainer.texts()[0] if text])
        base = said(model, texts)
        model.edit(EDITS[:1], check=False)
        assert model.lm.score(pair)[0].loss < before * (0.8 if kl else 0.5)
        moved[kl] = divergence(base, said(model, texts)).item()
    assert moved[1.0] < 0.9 * moved[0.0]


def test_one_layer_is_enough_when_asked_for():
    model = edit_model("llama", "bitfit", EDITS[:1], layer=1)
    (path,) = model.method.paths
    assert path == model.lm.architecture.value_path(1) and set(model.method.state()[0]) == {
        f"{path}.bias"
    }
    every = edit_model("llama", "bitfit", EDITS[:1], layer=None)
    assert len(every.method.paths) == every.lm.architecture.n_layers
