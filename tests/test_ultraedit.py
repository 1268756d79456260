"""UltraEdit against its equations in float64, worked out on the whole model."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from edited import EDITS, edit_model, same_state
from families import tiny_model, tiny_tokenizer
from torch.nn import functional as F

from errata import EditModel
from errata.errors import ConfigError
from errata.lm.background import background_texts
from errata.lm.tail import Tail
from errata.methods.mastery.ultraedit import Normaliser, ridge

SETTINGS = {"layer": 2, "layers": 2, "lr": 1e-3}


def flows(model, edits, deltas):
    """By path, the (h, g) of every token that predicts one of the answers, edit by edit, in
    float64.
    """
    base = copy.deepcopy(model.base).double()
    found = {path: ([], []) for path in deltas}
    with torch.no_grad():
        for path, delta in deltas.items():
            base.get_submodule(path).weight += delta
    for edit in edits:
        row = model.lm.encode(
            edit.prompt, edit.target, model.lm.ending_of(edit.prompt, edit.target)
        )
        ids, seen = torch.tensor([row.ids]), {}

        def look(_, args, out, path, seen=seen):
            seen[path] = args[0], out.requires_grad_()
            return out

        hooks = [
            base.get_submodule(path).register_forward_hook(partial(look, path=path))
            for path in deltas
        ]
        answer = slice(row.prompt_length - 1, -1)
        loss = F.cross_entropy(
            base(ids).logits[0, answer], ids[0, row.prompt_length :], reduction="sum"
        )
        gradients = torch.autograd.grad(loss, [out for _, out in seen.values()])
        for (path, (h, _)), g in zip(seen.items(), gradients, strict=True):
            found[path][0].append(h[0, answer].detach())
            found[path][1].append(g[0, answer])
        for hook in hooks:
            hook.remove()
    return {path: (torch.cat(h), torch.cat(g)) for path, (h, g) in found.items()}


def by_the_formulas(model, turns, lr):
    """The deltas after some turns, and everything that was seen, by path."""
    deltas = {
        path: torch.zeros_like(delta, dtype=torch.float64)
        for path, delta in model.method.patch.deltas.items()
    }
    seen = {path: [] for path in deltas}
    for turn in turns:
        found = flows(model, turn, deltas)
        for path, (h, g) in found.items():
            seen[path].append(torch.cat([h, g], -1))
            everything = torch.cat(seen[path])
            unit = (seen[path][-1] - everything.mean(0)) / (
                everything.var(0, unbiased=False) + 1e-8
            ).sqrt()
            h_hat, g_hat = unit[:, : h.shape[1]], unit[:, h.shape[1] :]
            v = torch.stack([-lr * (a @ a) * b for a, b in zip(h_hat, g_hat, strict=True)])
            inverse = torch.linalg.inv(h.T @ h + torch.eye(h.shape[1], dtype=torch.float64))
            deltas[path] = deltas[path] + (inverse @ h.T @ v).T
    return deltas, {path: torch.cat(rows) for path, rows in seen.items()}


@pytest.mark.parametrize(
    "batch", [1, 2, 3]
)  # of three edits a turn: no ragged mini-batch, a ragged one, a single one
def test_two_turns_are_those_of_the_formulas(batch):
    model = edit_model("llama", "ultraedit", EDITS, turn=3, batch=batch, **SETTINGS)
    model.method.patch.remove()
    assert len(model.method.patch.deltas) == 2
    deltas, seen = by_the_formulas(model, (EDITS[:3], EDITS[3:]), SETTINGS["lr"])
    for path, delta in deltas.items():
        assert delta.norm() > 1e-3
        torch.testing.assert_close(
            model.method.patch.deltas[path].double(),
            delta,
            rtol=1e-4,
            atol=1e-4 * delta.abs().max(),
        )
        known = model.method.normaliser(path)
        assert known.count == len(seen[path])
        torch.testing.assert_close(known.mean, seen[path].mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            known.scatter / known.count, seen[path].var(0, unbiased=False), rtol=1e-3, atol=1e-5
        )


def test_the_normaliser_is_mean_and_deviation_of_all_rows():
    torch.manual_seed(0)
    rows = torch.randn(37, 5, dtype=torch.float64) * torch.tensor([1.0, 10, 0.1, 3, 0]) + 100
    known = Normaliser(*torch.zeros(3, 1, dtype=torch.float64))
    for part in rows.split([1, 20, 9, 7]):
        known = known.updated(part)
    assert known.count == 37
    torch.testing.assert_close(known.mean, rows.mean(0))
    torch.testing.assert_close((known.scatter / 37), rows.var(0, unbiased=False))
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-8).sqrt()
    torch.testing.assert_close(known.normalise(rows), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [1, 3, 8, 20])
def test_either_system_gives_the_ridge_solution(n, d_in=8, d_out=5):
    torch.manual_seed(n)
    h, v = torch.randn(n, d_in, dtype=torch.float64), torch.randn(n, d_out, dtype=torch.float64)
    expected = torch.linalg.inv(h.T @ h + torch.eye(d_in, dtype=torch.float64)) @ h.T @ v
    torch.testing.assert_close(ridge(h, v), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "cut", [2, 4, 5]
)  # in the middle of the first turn, at a turn's end, in the middle of the second
def test_saved_in_the_middle_and_gone_on_with(cut, tmp_path):
    whole = edit_model("llama", "ultraedit", EDITS, turn=4, **SETTINGS)
    half = edit_model("llama", "ultraedit", EDITS[:cut], turn=4, **SETTINGS)
    half.save_pretrained(tmp_path)
    loaded = EditModel.from_pretrained(tiny_model("llama"), tmp_path, tiny_tokenizer())
    loaded.edit(EDITS[cut:], check=False)
    same_state(loaded, whole)
    assert sorted(loaded.method.extra_state) == sorted(
        f"{path}.{name}" for path in loaded.method.paths for name in ("count", "mean", "scatter")
    )


def test_the_normaliser_remembers_former_turns():
    """The second turn is not what it were if it stood alone on the model as the first left it."""
    model = edit_model("llama", "ultraedit", EDITS[:3], turn=3, **SETTINGS)
    first = {path: delta.clone() for path, delta in model.method.patch.deltas.items()}
    forgetful = edit_model("llama", "ultraedit", EDITS[:3], turn=3, **SETTINGS)
    forgetful.method.extra_state = {}
    for each in (model, forgetful):
        each.edit(EDITS[3:], check=False)
    for path in first:
        step, other = (each.method.patch.deltas[path] - first[path] for each in (model, forgetful))
        assert (step - other).norm() > 0.1 * step.norm()


def test_a_turn_lowers_the_loss():
    model = edit_model("llama", "ultraedit", layer=2, layers=1, lr=3e-2)
    pairs = [(edit.prompt, edit.target) for edit in EDITS]
    before = [score.loss for score in model.lm.score(pairs)]
    model.edit(EDITS, check=False)
    after = [score.loss for score in model.lm.score(pairs)]
    assert sum(after) < 0.8 * sum(before)


def test_without_a_rate_an_output_is_moved_by_as_much_as_outputs_are():
    model = edit_model("llama", "ultraedit", layer=2, layers=2)
    model.edit(EDITS, check=False)
    texts = background_texts(model.lm, 64)
    width = model.lm.architecture.d_in
    for path, layer in zip(model.method.paths, (1, 2), strict=True):
        with model.disable_edits():
            values = torch.cat(
                [
                    Tail(model.lm, layer, model.lm.prompt_batch([text])).values[0]
                    for text in texts
                    if text
                ]
            )
        typical = values.square().mean(-1).sqrt().median().item()
        assert model.method.rate(path) == pytest.approx(typical / width, rel=0.1)
    assert all(delta.any() for delta in model.method.patch.deltas.values())


def test_which_layers():
    assert edit_model("llama", "ultraedit", layer=None).method.paths == [
        "model.layers.2.mlp.down_proj"
    ]
    wide = edit_model("llama", "ultraedit", layer=3, layers=3).method.paths
    assert wide == [f"model.layers.{layer}.mlp.down_proj" for layer in (1, 2, 3)]
    with pytest.raises(ConfigError, match="layers is 4, and up to layer 2 there are only 3"):
        edit_model("llama", "ultraedit", layers=4)
    with pytest.raises(ConfigError, match="no layer 9"):
        edit_model("llama", "ultraedit", layer=9)
    with pytest.raises(ConfigError, match="turn is 0"):
        edit_model("llama", "ultraedit", turn=0)
