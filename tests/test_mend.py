"""MEND against its equations in float64, and its training: it helps, and can be interrupted."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from edited import EDITS, EXAMPLES, edit_model
from families import tiny_model, tiny_tokenizer
from torch.nn import functional as F

import errata
from errata import EditModel, Example
from errata.atlas import make_cases, training_cases
from errata.errors import ConfigError, EditError
from errata.methods.editor_training import EditorTraining, EditorTrainingConfig

SETTINGS = {"layer": None, "training_steps": 6, "batch": 2, "rank": 16}
LONG = pytest.mark.long


def untrained(family="llama", **settings):
    """A model on which nothing is trained yet."""
    config = errata.method_class("mend").config_class.from_dict({**SETTINGS, **settings})
    return EditModel(tiny_model(family), config, tiny_tokenizer())


def plain_flows(model, edit, deltas):
    """(u, d) of each edited matrix in float64 from the plain model: d is found as the gradient of
    the module's output.
    """
    base = copy.deepcopy(model.base).double()
    row = model.lm.encode(edit.prompt, edit.target, model.lm.ending_of(edit.prompt, edit.target))
    ids, seen = torch.tensor([row.ids]), []
    for path in model.method.patch.deltas:
        module = base.get_submodule(path)
        with torch.no_grad():
            module.weight += (
                deltas[path].double().T
                if module.weight.shape != deltas[path].shape
                else deltas[path].double()
            )

        def keep(_, args, output):
            output = output.requires_grad_()
            output.retain_grad()
            seen.append((args[0], output))
            return output

        module.register_forward_hook(keep)
    logits = base(ids).logits[0, row.prompt_length - 1 : -1]
    F.cross_entropy(logits, ids[0, row.prompt_length :]).backward()
    return [(u.detach()[0], output.grad[0]) for u, output in seen]


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(each, marks=LONG) for each in ("gpt2", "gpt_neox"))]
)
def test_an_edit_is_the_formula(family):
    """-alpha sum d~ u~^T, with d~ and u~ from the network in float64, on the model that the first
    edit changed.
    """
    model = edit_model(family, "mend", EDITS[:1], **SETTINGS)
    method = model.method
    method.editor.step_sizes.data.copy_(torch.tensor([0.01, -0.02, 0.03]))
    for layer in method.editor.layers:
        for parameter in layer.parameters():
            parameter.data += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(7)
            )
    before = dict(method.patch.deltas)
    weights = {name: tensor.double() for name, tensor in method.editor.state_dict().items()}
    deviation = (weights["spread"] / (weights["count"] - 1)).sqrt()
    expected = []
    with model.disable_edits():
        flows = plain_flows(model, EDITS[1], before)
    for m, (u, d) in enumerate(flows):
        some = d.abs().amax(-1) > 1e-12
        assert some.any() and (
            m < len(before) - 1 or not some[0]
        )  # the last block: only where the answer is predicted
        z = (torch.cat([u, d], -1)[some] - weights["mean"]) / deviation
        for i in range(2):
            w = {
                name.removeprefix(f"layers.{i}."): t
                for name, t in weights.items()
                if name.startswith(f"layers.{i}.")
            }
            z = z + (
                w["scale"][m] * (z @ (w["left"] @ w["right"]).T + w["bias"]) + w["shift"][m]
            ).clamp(min=0)
        expected.append(
            -weights["step_sizes"][m]
            * torch.einsum("to,ti->oi", z[:, u.shape[-1] :], z[:, : u.shape[-1]])
        )
    model.edit(EDITS[1:2], check=False)
    for (path, delta), change in zip(method.patch.deltas.items(), expected, strict=True):
        moved = (delta - before[path]).double()
        assert (moved - change).norm() < 1e-4 * change.norm(), path


def test_before_training_the_editor_is_the_identity():
    """What it gives is then a step down the gradient, normalised; with mean 0 and deviation 1, the
    gradient itself.
    """
    model = untrained(step_size=0.5)
    method = model.method
    flows = method.gradient_factors(method._answer(EDITS[0].prompt, EDITS[0].target))
    zero = {path: torch.zeros_like(delta) for path, delta in method.patch.deltas.items()}
    for change, (u, d) in zip(
        method.editor(flows), plain_flows(model, EDITS[0], zero), strict=True
    ):
        torch.testing.assert_close(change.double(), -0.5 * d.T @ u, rtol=1e-4, atol=1e-6)


def test_running_figures_are_those_of_all_tokens():
    editor = untrained().method.editor
    width = editor.mean.shape[0]
    rows = 3 + 2 * torch.randn(40, width, generator=torch.Generator().manual_seed(0))
    for part in rows.split([1, 7, 32]):
        zero = torch.zeros(
            2, width
        )  # tokens without an input or without a gradient count for nothing
        both = torch.cat(
            [part, zero, torch.cat([part[:1, : editor.d_in], zero[:1, editor.d_in :]], 1)]
        )
        editor.observe([(both[:, : editor.d_in], both[:, editor.d_in :])])
    normal = editor.normalise((rows[:, : editor.d_in], rows[:, editor.d_in :])).double()
    torch.testing.assert_close(
        normal, (rows.double() - rows.double().mean(0)) / rows.double().std(0), rtol=0, atol=1e-5
    )


def test_a_change_that_is_added_is_the_change_of_the_weights():
    """The loss of training, with changes added beside the matrices, is that of the model with
    changed matrices.
    """
    model = untrained("opt", step_size=0.1)
    method, example = (
        model.method,
        Example(EXAMPLES[0].edit, EXAMPLES[0].rephrases[:1], EXAMPLES[0].others[:1]),
    )
    loss = method.loss(example, random.Random(0)).item()
    asked, other = (
        method._answer(example.rephrases[0], example.edit.target),
        method._answer(example.others[0]),
    )
    before = other.logits().log_softmax(-1)
    changes = method.editor(
        method.gradient_factors(method._answer(example.edit.prompt, example.edit.target))
    )
    method.patch.deltas = {
        path: change.detach() for path, change in zip(method.patch.deltas, changes, strict=True)
    }
    with method.patch.on(model.lm):
        asked, other = (
            method._answer(example.rephrases[0], example.edit.target),
            method._answer(example.others[0]),
        )
        nll, after = F.cross_entropy(asked.logits(), asked.labels), other.logits().log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1).mean()
    assert loss == pytest.approx((0.1 * nll + kl).item(), rel=1e-4) and kl > 1e-4


def mean_loss(method, examples, seeds=range(2)):
    with torch.no_grad():
        held = copy.deepcopy(method.editor.state_dict())
    total = sum(
        method.loss(example, random.Random(seed)).item() for seed in seeds for example in examples
    )
    method.editor.load_state_dict(held)
    return total / len(examples) / len(seeds)


@pytest.mark.long
def test_training_lowers_its_loss():
    after = {}
    for lr in (0.0, 5e-3):  # without a rate for the network only the size of the step is learned
        model = untrained(training_steps=12, lr=lr, step_size_lr=1e-3)
        before = mean_loss(model.method, EXAMPLES[:2])
        model.prepare(EXAMPLES[:2])
        after[lr] = mean_loss(model.method, EXAMPLES[:2])
        assert after[lr] < before and bool(lr) == bool(model.method.editor.layers[0].left.any())
    assert after[5e-3] < 0.7 * after[0.0]


@pytest.mark.long
def test_trained_it_beats_untrained_on_what_it_has_not_seen():
    held = make_cases(3, seed=1)
    taught = training_cases(12, held, seed=2)
    (base, tokenizer), found = errata.load_base("atlas", "float32"), {}
    for lr in (0.0, 1e-6):  # without a rate only the running figures are learned
        config = errata.method_class("mend").config_class.from_dict(
            {"training_steps": 3, "batch": 4, "rank": 64, "lr": lr, "step_size_lr": lr * 300}
        )
        model = errata.get_edit_model(base, config, tokenizer)
        model.prepare([case.example() for case in taught])
        losses = []
        for case in held:
            model.edit([case.edit], check=False)
            losses += [
                score.loss
                for score in model.lm.score(
                    [(prompt, case.edit.target) for prompt in case.rephrases]
                )
            ]
            model.undo(case.edit.id)
        found[lr] = sum(losses) / len(losses)
    assert found[1e-6] < 0.5 * found[0.0]


@pytest.mark.long
def test_broken_off_it_goes_on_to_the_byte(tmp_path):
    unbroken = untrained()
    unbroken.prepare(EXAMPLES)
    model = untrained()
    for stop in (1, 3):  # after the first step, and after three more
        made = []

        def progress(count, model=model, made=made, stop=stop):
            made.append(count)
            if len(made) == stop:
                model.save_pretrained(tmp_path / "a")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            model.prepare(EXAMPLES, progress)
        with pytest.raises(ConfigError, match="mend is not trained for this model yet"):
            model.edit(EDITS[:1])
        model = EditModel.from_pretrained(tiny_model("llama"), tmp_path / "a", tiny_tokenizer())
        assert model.method.steps_left and not model.method.prepared
    model.prepare(EXAMPLES)
    assert model.method.prepared
    for each, name in ((model, "a"), (unbroken, "b")):
        each.save_pretrained(tmp_path / name)
    for file in ("edit_config.json", "edit_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert not any(name.startswith("adam") for name in model.method.state()[0])
    model.prepare(EXAMPLES[:1])  # there is nothing left to do


def test_a_trained_editor_is_saved_and_used_again(tmp_path):
    model = untrained()
    model.prepare(EXAMPLES)
    model.save_pretrained(tmp_path)
    again = EditModel.from_pretrained(tiny_model("llama"), tmp_path, tiny_tokenizer())
    assert again.edits == [] and again.method.prepared
    for each in (model, again):
        each.edit(EDITS[:2], check=False)
        each.undo(EDITS[0].id)
    for path, delta in model.method.patch.deltas.items():
        assert torch.equal(delta, again.method.patch.deltas[path]) and delta.any()


@pytest.mark.long
def test_other_examples_are_another_training():
    model = untrained()

    def stop(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.prepare(EXAMPLES, stop)
    with pytest.raises(ConfigError, match="begun with other examples"):
        model.prepare(EXAMPLES[1:])
    model.prepare(EXAMPLES)
    assert model.method.prepared


def test_what_cannot_be_learned_from_is_told():
    model, (edit, rephrases, others) = (
        untrained(),
        (EXAMPLES[0].edit, EXAMPLES[0].rephrases, EXAMPLES[0].others),
    )
    with pytest.raises(EditError, match="has none: give the field 'rephrases'"):
        model.prepare([EXAMPLES[1], Example(edit, (), others)])
    with pytest.raises(EditError, match="give the field 'locality'"):
        model.prepare([Example(edit, rephrases)])
    with pytest.raises(EditError, match="there are none"):
        model.prepare([])
    assert model.method.steps_left == 6
    untrained(learn_from="prompt").prepare([Example(edit, (), others)])
    with pytest.raises(ConfigError, match="there are 1 edits in the model"):
        edit_model("llama", "mend", EDITS[:1]).prepare(EXAMPLES)
    with pytest.raises(ConfigError, match="wise needs no training"):
        edit_model("llama", "wise").prepare(EXAMPLES)


@pytest.mark.parametrize(
    ("layer", "blocks", "layers"),
    [(None, 3, [1, 2, 3]), (2, 2, [1, 2]), (1, 9, [0, 1]), (0, 1, [0])],
)
def test_the_last_blocks_are_edited(layer, blocks, layers):
    assert untrained(layer=layer, blocks=blocks).method.layers == layers


@pytest.mark.parametrize("layer", [-1, 4])
def test_no_such_layer(layer):
    with pytest.raises(
        ConfigError, match=f"no layer {layer}|layer is {layer}; it must lie between 0"
    ):
        untrained(layer=layer)


def test_training_is_adam():
    """Two parameters, two rates; stopped after each step."""
    wanted = [torch.nn.Parameter(torch.tensor([float(i), -2.0])) for i in range(2)]
    adam = torch.optim.Adam(
        [{"params": [p], "lr": lr} for p, lr in zip(wanted, (0.1, 0.3), strict=True)]
    )
    for _ in range(4):
        adam.zero_grad()
        sum((p - 1).square().sum() for p in wanted).backward()
        adam.step()

    kept, values = {}, {"training_steps_made": 0, "learned_from": ""}
    weights = {f"p{i}": torch.tensor([float(i), -2.0]) for i in range(2)}
    for _ in range(4):
        mine = {name: torch.nn.Parameter(weight.clone()) for name, weight in weights.items()}
        config = EditorTrainingConfig(training_steps=4, batch=3, clip=1e9)
        training = EditorTraining(mine, {"p0": 0.1, "p1": 0.3}, config)
        training.load_state(kept, values)

        def stop(_):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            training.run(
                EXAMPLES, lambda *_, m=mine: sum((p - 1).square().sum() for p in m.values()), stop
            )
        kept, values = training.state()
        weights = {name: p.detach() for name, p in mine.items()}
    assert values["training_steps_made"] == 4 and not kept
    for p, weight in zip(wanted, weights.values(), strict=True):
        torch.testing.assert_close(weight, p.detach())


def test_broken_off_it_goes_on_exactly_where_losses_reach_a_parameter_late_or_never():
    class Broken(Exception):
        pass

    def trained(breaks):
        kept, values = {}, {"training_steps_made": 0, "learned_from": ""}
        weights = {"reached": torch.ones(2), "late": torch.ones(2), "never": torch.ones(3)}
        while values["training_steps_made"] < 5:
            mine = {name: torch.nn.Parameter(weight.clone()) for name, weight in weights.items()}
            config = EditorTrainingConfig(training_steps=5, clip=1e9)
            training = EditorTraining(mine, dict.fromkeys(mine, 0.1), config)
            training.load_state(kept, values)

            def loss(*_, training=training, mine=mine):
                some = ("reached", "late") if training.steps_made > 1 else ("reached",)
                return sum(mine[name].square().sum() for name in some)

            def progress(_, training=training):
                if breaks:
                    raise Broken(training.state())

            try:
                training.run(EXAMPLES, loss, progress)
                kept, values = training.state()
            except Broken as broken:
                kept, values = broken.args[0]
            weights = {name: p.detach() for name, p in mine.items()}
        return weights

    broken, unbroken = trained(True), trained(False)
    assert all(torch.equal(broken[name], unbroken[name]) for name in unbroken)
    assert torch.equal(unbroken["never"], torch.ones(3))
    assert (unbroken["reached"] < unbroken["late"]).all() and (unbroken["late"] < 1).all()
