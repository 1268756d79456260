"""MEMIT and AlphaEdit against their equations in float64, block after block."""

from __future__ import annotations

import copy

import pytest
import torch
from edited import EDITS, edit_model, logits_of, same_state
from families import tiny_model, tiny_tokenizer

from errata.errors import ArchitectureError, ConfigError
from errata.lm import LM
from errata.lm.hooks import capture_input, capture_output
from errata.lm.subject import subject_token
from errata.methods.mastery.alphaedit import append_keys, null_space_update
from errata.methods.mastery.memit import least_squares
from errata.solvers.moments import SecondMoment
from errata.solvers.multi_layer import stream_gain, window_of
from errata.solvers.projector import Projector
from errata.solvers.values import with_prefix

WINDOW = {"layer": 2, "window": 2, "steps": 2, "prefixes": 2}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow(model, layer, prompt, subject):
    """(key, state of the block) at the subject, on the plain model, one prompt alone."""
    lm = model.lm
    token = subject_token(lm, prompt, subject)
    with (
        torch.no_grad(),
        capture_input(lm.architecture.value_module(lm.model, layer)) as keys,
        capture_output(lm.architecture.block(lm.model, layer)) as states,
    ):
        lm.model(input_ids=torch.tensor([lm.encode_prompt(prompt)]))
    return keys[0].flatten(0, -2)[token].double(), states[0].flatten(0, -2)[token].double()


def keys_of(model, layer, edits):
    """The published mean: over the groups bare and prefixed, of the mean in each."""
    columns = []
    for edit in edits:
        bare = flow(model, layer, edit.prompt, edit.subject)[0]
        groups = [
            flow(model, layer, with_prefix(x, edit.prompt), edit.subject)[0]
            for x in model.method.solver.prefixes
        ]
        columns.append((bare + torch.stack(groups).mean(0)) / 2)
    return torch.stack(columns, 1)


def by_hand(model, edits, aims, solve):
    """The deltas (path -> fp64) of one turn, block after block on a copy of the base, by
    `solve(layer, K, R)`.
    """
    solver, bare = model.method.solver, copy.deepcopy(model)
    bare.method.patch.remove()
    deltas = {}
    for done, (layer, path) in enumerate(solver.paths.items()):
        keys = keys_of(bare, layer, edits)
        now = torch.stack(
            [flow(bare, solver.last_layer, edit.prompt, edit.subject)[1] for edit in edits], 1
        )
        deltas[path] = solve(layer, keys, (aims.double().T - now) / (len(solver.paths) - done))
        weight = bare.base.get_submodule(path).weight
        with torch.no_grad():
            weight += (deltas[path].T if weight.shape != deltas[path].shape else deltas[path]).to(
                weight
            )
    return deltas, bare


def aim(solver, edit):
    """z, as it was solved for."""
    state, value = solver._solutions[edit]
    return state + solver.gain * value.delta


def close(one, other, tolerance=1e-4):
    assert (one.double() - other).norm() < tolerance * other.norm()


def test_least_squares_is_the_normal_equation():
    root, keys, missing = drawn(10, 40), drawn(10, 3, seed=1), drawn(4, 3, seed=2)
    moment = root @ root.T / 40
    change = least_squares(keys, missing, SecondMoment(moment), 7.0)
    torch.testing.assert_close(change @ (7.0 * moment + keys @ keys.T), missing @ keys.T)
    torch.testing.assert_close(
        least_squares(keys, missing, SecondMoment(moment), 1e-9) @ keys,
        missing,
        atol=1e-6,
        rtol=1e-6,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("turn", [None, 1])
def test_memit_writes_each_layer_by_its_equation(family, turn):
    edits = EDITS[:3] if turn is None else EDITS[:1]
    model = edit_model(family, "memit", edits, turn=turn, background_weight=20.0, **WINDOW)
    method = model.method
    aims = torch.stack([aim(method.solver, edit) for edit in edits])

    def solve(layer, keys, missing):
        moment = method.statistics[layer].matrix
        moment = moment + method.config.ridge * moment.diagonal().mean() * torch.eye(len(moment))
        return missing @ keys.T @ torch.linalg.inv(20.0 * moment + keys @ keys.T)

    expected, _ = by_hand(model, edits, aims, solve)
    assert (
        list(expected)
        == list(method.patch.deltas)
        == [model.lm.architecture.value_path(i) for i in (1, 2)]
    )
    for path, delta in expected.items():
        close(method.patch.deltas[path], delta)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_written_lightly_the_states_are_those_aimed_at(family):
    """With next to no weight on the background, the last block's states at the subjects are z."""
    model = edit_model(
        family, "memit", EDITS[:1], background_weight=1e-6, window=1, layer=2, steps=4, prefixes=0
    )
    state = flow(model, 2, EDITS[0].prompt, EDITS[0].subject)[1]
    torch.testing.assert_close(
        state.float(), aim(model.method.solver, EDITS[0]), rtol=1e-3, atol=1e-3
    )


def test_streaming_aims_on_the_model_as_edited_so_far_and_mass_on_the_base_model():
    settings = {**WINDOW, "background_weight": 1.0}
    stream, mass = (
        edit_model("llama", "memit", EDITS[:3], turn=turn, **settings) for turn in (1, None)
    )
    alone = edit_model("llama", "memit", EDITS[2:3], turn=1, **settings)
    aims = [aim(model.method.solver, EDITS[2]) for model in (stream, mass, alone)]
    assert torch.equal(aims[1], aims[2]) and not torch.allclose(aims[0], aims[2])
    assert not torch.allclose(logits_of(stream, stream.lm), logits_of(mass, mass.lm))


@pytest.mark.parametrize(
    ("method", "turn"),
    [
        ("memit", 2),
        ("alphaedit", 100),
        pytest.param("memit", None, marks=pytest.mark.long),
        pytest.param("alphaedit", 2, marks=pytest.mark.long),
    ],
)
def test_it_does_not_matter_in_how_many_calls_the_ledger_came(method, turn):
    at_once = edit_model("llama", method, EDITS[:5], turn=turn, **WINDOW)
    parts = edit_model("llama", method, EDITS[:1], turn=turn, **WINDOW)
    parts.edit(EDITS[1:4], check=False)
    parts.edit(EDITS[4:5], check=False)
    same_state(at_once, parts, 1e-5)


def test_values_found_are_not_solved_for_again(monkeypatch):
    from errata.solvers import multi_layer as spreading

    solved = []
    solve = spreading.solve_value
    monkeypatch.setattr(
        spreading, "solve_value", lambda *args, **more: solved.append(1) or solve(*args, **more)
    )
    model = edit_model("llama", "memit", turn=None, **WINDOW)
    for edit in EDITS[:3]:
        model.edit([edit], check=False)
    assert len(solved) == 3
    model.undo(EDITS[0].id)
    same_state(model, edit_model("llama", "memit", EDITS[1:3], turn=None, **WINDOW), 1e-5)


def test_within_a_null_space_it_is_the_published_equation():
    root, keys, missing, earlier = (
        drawn(10, 6),
        drawn(10, 3, seed=1),
        drawn(4, 3, seed=2),
        drawn(5, 10, seed=3),
    )
    space = Projector(10)
    space.fit_moment(root @ root.T, 1e-9)
    projector = space.free @ space.free.T
    assert space.rank == 4
    for past in (None, earlier):
        known = keys @ keys.T + (0 if past is None else past.T @ past)
        expected = torch.linalg.solve(
            projector @ known + 0.3 * torch.eye(10), projector @ keys @ missing.T
        ).T
        change = null_space_update(space, keys, missing, past, 0.3)
        torch.testing.assert_close(change, expected)
        torch.testing.assert_close(change @ root, torch.zeros(4, 6).double(), atol=1e-9, rtol=0)


def test_earlier_keys_fold_without_loss():
    first, second = drawn(6, 4), drawn(6, 5, seed=1)
    rows = append_keys(append_keys(None, first), second)
    assert rows.shape == (6, 6)
    expected = first @ first.T + second @ second.T
    torch.testing.assert_close(rows.T @ rows, expected.float(), rtol=1e-5, atol=1e-5)


def null_space(moment: torch.Tensor) -> Projector:
    space = Projector(len(moment))
    space.fit_moment(moment)
    return space


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_alphaedit_writes_each_layer_by_its_equation_and_carries_the_keys(family):
    settings = {**WINDOW, "l2": 0.5, "turn": 2}
    model = edit_model(family, "alphaedit", EDITS[:2], **settings)
    method, solver = model.method, model.method.solver
    aims = torch.stack([aim(solver, edit) for edit in EDITS[:2]])
    spaces = {layer: null_space(method.statistics[layer].matrix) for layer in solver.paths}

    def solve(layer, keys, missing):
        projector = spaces[layer].free @ spaces[layer].free.T
        return torch.linalg.solve(
            projector @ keys @ keys.T + 0.5 * torch.eye(len(keys)), projector @ keys @ missing.T
        ).T

    expected, after = by_hand(model, EDITS[:2], aims, solve)
    assert (
        method.ranks == {layer: space.rank for layer, space in spaces.items()}
        and min(method.ranks.values()) > 0
    )
    for layer, path in solver.paths.items():
        close(method.patch.deltas[path], expected[path])
        close(method.extra_state[f"keys.{layer}"].T, keys_of(after, layer, EDITS[:2]))

    extra_state, deltas = (
        dict(method.extra_state),
        {path: d.double() for path, d in method.patch.deltas.items()},
    )
    model.edit(EDITS[2:4], check=False)
    layer, path = next(iter(solver.paths.items()))
    keys = keys_of(after, layer, EDITS[2:4])
    now = torch.stack(
        [flow(after, solver.last_layer, edit.prompt, edit.subject)[1] for edit in EDITS[2:4]], 1
    )
    missing = (torch.stack([aim(solver, edit) for edit in EDITS[2:4]]).double().T - now) / 2
    past, free = extra_state[f"keys.{layer}"].double(), spaces[layer].free
    projector = free @ free.T
    system = projector @ (keys @ keys.T + past.T @ past) + 0.5 * torch.eye(len(keys))
    close(
        method.patch.deltas[path].double() - deltas[path],
        torch.linalg.solve(system, projector @ keys @ missing.T).T,
        1e-3,
    )


def test_what_the_background_uses_does_not_see_the_change():
    model = edit_model("llama", "alphaedit", EDITS[:3], **WINDOW)
    for layer, path in model.method.solver.paths.items():
        delta, moment = (
            model.method.patch.deltas[path].double(),
            model.method.statistics[layer].matrix,
        )
        seen = (delta @ moment * delta).sum() / delta.square().sum()
        assert seen < 0.1 * moment.diagonal().mean()


def test_a_threshold_under_which_nothing_is_is_said(caplog):
    model = edit_model("llama", "alphaedit", threshold=1e-12, **WINDOW)
    with pytest.raises(
        ConfigError,
        match=r"^threshold is 1e-12, and layer 1's second moment has no singular value below",
    ):
        model.edit(EDITS[:1])
    assert model.edits == []
    with caplog.at_level("INFO"):
        edit_model("llama", "alphaedit", EDITS[:1], **WINDOW)
    assert "directions" in caplog.text


@pytest.mark.parametrize(
    ("depth", "last", "length", "layers"),
    [
        (32, None, None, [4, 5, 6, 7, 8]), (28, None, None, [3, 4, 5, 6, 7]),
        (6, None, None, [0, 1]), (2, None, None, [0]), (1, None, None, [0]),
        (32, 10, None, [6, 7, 8, 9, 10]), (32, 10, 2, [9, 10]), (6, 0, None, [0]),
    ],
)  # fmt: skip
def test_windows(depth, last, length, layers):
    assert window_of(depth, last, length) == layers


def test_a_window_below_the_first_block():
    with pytest.raises(ConfigError, match="window is 4; up to layer 2 there are 3 blocks"):
        edit_model("llama", "memit", layer=2, window=4)


@pytest.mark.parametrize(
    ("family", "gain"),
    [("llama", 1.0), ("gpt2", 1.0), ("falcon", 1.0), ("granite", 1.0), ("opt", 1.0)],
)
def test_a_value_arrives_in_the_stream_as_it_is(family, gain):
    assert stream_gain(LM(tiny_model(family), tiny_tokenizer()), 1) == pytest.approx(gain, rel=1e-3)


def test_a_block_that_scales_its_value_is_reckoned_with():
    model = tiny_model("granite")
    for block in model.model.layers:
        block.residual_multiplier = 0.25
    assert stream_gain(LM(model, tiny_tokenizer()), 1) == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2"])
def test_a_block_that_normalises_its_value_is_refused(family):
    with pytest.raises(ArchitectureError, match=family):
        stream_gain(LM(tiny_model(family), tiny_tokenizer()), 1)
