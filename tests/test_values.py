"""Solving for a value: ROME's loss on the whole model in float64; it falls, within the clamp."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from edited import EDITS
from families import tiny_model, tiny_tokenizer
from grid import grid
from torch.nn import functional as F

from errata import Edit
from errata.lm import LM
from errata.lm.hooks import replace_output
from errata.lm.subject import mention
from errata.solvers.values import ValueConfig, ValueProblem, solve_value, with_prefix

LAYER = 1
PREFIXES = ["In the north", "Who wrote?"]
FREE = {"stop_loss": 0.0, "clamp": 100.0}


def lm_of(family: str = "llama") -> LM:
    model = tiny_model(family)
    model.requires_grad_(False)
    return LM(model, tiny_tokenizer())


def logits(lm, each, delta):
    """Logits of one row alone with delta added at its subject, on the whole model."""

    def add(out):
        place = torch.zeros(len(each.row.ids), dtype=out.dtype)
        place[each.token] = 1
        return out + (place[:, None] * delta.to(out.dtype)).view(out.shape)

    with replace_output(lm.architecture.value_module(lm.model, LAYER), add):
        return lm.model(input_ids=torch.tensor([each.row.ids])).logits[0]


def published_loss(lm, edit, delta, config, size, at):
    """ROME's loss, row after row."""
    ending = lm.ending_of(edit.prompt, edit.target)
    prompts = [edit.prompt, *(with_prefix(prefix, edit.prompt) for prefix in PREFIXES)]
    rows = [mention(lm, prompt, edit.subject, edit.target, ending, at) for prompt in prompts]
    total = 0.0
    for each in rows:
        start = each.row.prompt_length
        said, labels = logits(lm, each, delta)[start - 1 : -1], torch.tensor(each.row.ids[start:])
        total = total + F.cross_entropy(said, labels) / len(rows)
    kl_prompt = mention(lm, f"{edit.subject} is a", edit.subject, at=at)
    now = logits(lm, kl_prompt, delta)[-1].log_softmax(-1)
    before = logits(lm, kl_prompt, torch.zeros_like(delta))[-1].log_softmax(-1)
    return (
        total
        + config.kl * (now.exp() * (now - before)).sum()
        + config.weight_decay * delta.norm() / size**2
    )


@grid(
    "family at",
    [*product(("llama", "gpt2", "opt", "gemma2", "falcon"), ("subject_last", "last"))],
    lambda family, at: {family, at},
)
def test_steps_are_adam_on_the_published_loss(family, at):
    lm, edit = lm_of(family), EDITS[0]
    config = ValueConfig(steps=4, lr=0.05, kl=0.5, weight_decay=0.3, **FREE)
    found = solve_value(lm, LAYER, ValueProblem.of(lm, edit, PREFIXES, at), config)
    exact = LM(copy.deepcopy(lm.model).double(), lm.tokenizer)
    size = found.values[0].norm().double()
    delta = torch.zeros(lm.architecture.d_out, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=0.05)
    losses = []
    for _ in range(4):
        loss = published_loss(exact, edit, delta, config, size, at)
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    losses.append(published_loss(exact, edit, delta.detach(), config, size, at).item())
    assert found.losses == pytest.approx(losses, rel=1e-3)
    assert (found.delta - delta).norm() < 0.02 * delta.norm()


def test_keys_and_values_are_those_behind_each_prompt():
    lm = lm_of("gpt2")
    problem = ValueProblem.of(lm, EDITS[0], PREFIXES)
    found = solve_value(lm, LAYER, problem, ValueConfig(steps=1))
    module = lm.architecture.value_module(lm.model, LAYER)
    assert found.keys.shape == (3, lm.architecture.d_in) and found.values.shape == (
        3,
        lm.architecture.d_out,
    )
    torch.testing.assert_close(module(found.keys), found.values, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found.keys[0], found.keys[1])


def test_the_loss_falls_until_it_is_low_enough():
    lm = lm_of()
    problem = ValueProblem.of(lm, EDITS[0], PREFIXES)
    found = solve_value(
        lm,
        LAYER,
        problem,
        ValueConfig(steps=100, lr=0.5, clamp=100.0, stop_loss=6.5, weight_decay=0.0),
    )
    assert found.losses[0] > 6.9 and found.losses[-1] < 6.5 and 2 < len(found.losses) < 100
    assert min(found.losses[:-1]) >= 6.5


@pytest.mark.parametrize("size", [None, 2.0])
def test_delta_stays_within_the_clamp(size):
    lm = lm_of()
    problem = ValueProblem.of(lm, EDITS[0], PREFIXES)
    found = solve_value(
        lm, LAYER, problem, ValueConfig(steps=10, lr=5.0, clamp=0.5, stop_loss=0.0), size
    )
    length = 0.5 * (found.values[0].norm() if size is None else size)
    assert found.delta.norm() == pytest.approx(float(length), rel=1e-4)


def test_what_the_subject_is_holds_it_back():
    """At a large weight, what the model says behind "{subject} is a" hardly moves."""
    lm, moved = lm_of(), []
    problem = ValueProblem.of(lm, EDITS[0], ())
    for kl in (0.0, 100.0):
        delta = solve_value(
            lm, LAYER, problem, ValueConfig(steps=20, lr=0.1, kl=kl, weight_decay=0.0, **FREE)
        ).delta
        before, now = (
            logits(lm, problem.kl_prompt, d)[-1].softmax(-1)
            for d in (torch.zeros_like(delta), delta)
        )
        moved.append((now - before).abs().sum().item())
    assert moved[1] < 0.3 * moved[0]


def test_a_prompt_that_just_fits_is_solved_without_what_does_not():
    lm = lm_of()
    problem = ValueProblem.of(lm, Edit("zq" * 61, "x", "zq" * 61), PREFIXES)
    assert len(problem.prompts) == 1
    assert solve_value(lm, LAYER, problem, ValueConfig(steps=2)).delta.isfinite().all()


@pytest.mark.parametrize(
    ("prefix", "prompt"),
    [("", "Who?"), ("  ", "Who?"), ("a b", "a b. Who?"), ("a b. ", "a b. Who?")],
)
def test_a_prefix_is_a_sentence(prefix, prompt):
    assert with_prefix(prefix, "Who?") == prompt
