"""LoRA against its formula in float64, PEFT and `errata.solvers.merging`; and the shared loss."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model, logits_of, same_state
from families import tiny_model, tiny_tokenizer
from safetensors.torch import load_file
from torch.nn import functional as F

from errata import EditModel
from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.weights import add_to_weight, read_weight
from errata.methods.association.lora import LoraConfig
from errata.solvers.adapters import divergence
from errata.solvers.merging import merge

LAYER = 2


def thin(tensors, path, mark=""):
    """(A, B) of a module, in float64."""
    return tuple(tensors[f"{mark}base_model.model.{path}.lora_{x}.weight"].double() for x in "AB")


def double_logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_the_papers_formula(family, kind):
    model = edit_model(
        family, "lora", EDITS[:2], kind=kind, rank=4, alpha=6.0, layer=None, lr=0.02, prefixes=0
    )
    tensors = model.method.state()[0]
    plain = tiny_model(family).double()
    assert len(model.method.paths) == model.lm.architecture.n_layers
    for path in model.method.paths:
        a, b = thin(tensors, path)
        assert a.shape == (4, model.lm.architecture.d_in) and b.abs().max() > 0
        scale = 6.0 / 4**0.5 if kind == "rslora" else 6.0 / 4
        module = plain.get_submodule(path)
        weight = read_weight(module)
        change = scale * b @ a
        if kind == "dora":
            length = tensors[f"base_model.model.{path}.lora_magnitude_vector.weight"].double()
            moved = weight + change
            change = length[:, None] * moved / moved.norm(dim=1, keepdim=True) - weight
        add_to_weight(module, change)
    ids = torch.tensor([model.lm.encode_prompt(PROMPTS[2])])
    expected = double_logits(plain, ids)
    assert (double_logits(model, ids).double() - expected).abs().max() < 1e-4
    with model.disable_edits():
        assert (double_logits(model, ids).double() - expected).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_loads_what_was_saved(family, tmp_path):
    import peft

    model = edit_model(family, "lora", EDITS[:2], layer=None, lr=0.02)
    model.save_pretrained(tmp_path)
    config = model.method.config
    other = peft.get_peft_model(
        tiny_model(family),
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=model.method.paths,
            fan_in_fan_out=family == "gpt2",
        ),
    ).eval()
    result = peft.set_peft_model_state_dict(other, load_file(tmp_path / "edit_model.safetensors"))
    assert not result.unexpected_keys
    torch.testing.assert_close(
        logits_of(other, model.lm), logits_of(model, model.lm), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("how", ["ties", "linear"])
def test_shards_are_merged(how):
    settings = {
        "merge": how,
        "merge_density": 0.5,
        "merge_scale": 1.5,
        "edits_per_shard": 2,
        "rank": 4,
        "alpha": 8.0,
    }
    model = edit_model("llama", "lora", EDITS[:5], **settings)
    assert len(model.method.shards) == 3
    tensors = model.method.state()[0]
    (path,) = model.method.paths
    changes = []
    for j in range(3):
        a, b = thin(tensors, path, f"shard.{j}.")
        changes.append(2.0 * b @ a)
    expected = merge(changes, how, density=0.5, scale=1.5)
    assert expected.abs().max() > 0
    torch.testing.assert_close(
        model.method.patch.deltas[path].double(), expected, rtol=0, atol=1e-6
    )
    plain = tiny_model("llama").double()
    add_to_weight(plain.get_submodule(path), expected)
    ids = torch.tensor([model.lm.encode_prompt(PROMPTS[2])])
    assert (double_logits(model, ids).double() - double_logits(plain, ids)).abs().max() < 1e-4


def test_a_full_shard_is_left_alone_and_each_begins_on_the_base_model():
    model = edit_model("llama", "lora", EDITS[:2], merge="ties")
    first = model.method.state()[0]
    model.edit(EDITS[2:5], check=False)
    later = model.method.state()[0]
    assert all(torch.equal(later[name], tensor) for name, tensor in first.items())
    other = edit_model("llama", "lora", [EDITS[5], EDITS[1], *EDITS[2:5]], merge="ties")
    others = other.method.state()[0]
    assert all(
        torch.equal(others[name], later[name]) for name in later if not name.startswith("shard.0.")
    )


def test_kl_is_that_of_the_base_model_to_the_edited():
    draw = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 7, 11, generator=draw, dtype=torch.float64).log_softmax(-1)
    by_hand = sum((p[i].exp() * (p[i] - q[i])).sum() for i in range(7)) / 7
    assert divergence(p, q).item() == pytest.approx(by_hand.item(), rel=1e-9)
    assert divergence(p, p).item() == pytest.approx(0, abs=1e-12) and by_hand > 0.1


def test_steps_are_adam_on_answer_and_background():
    """Three steps on B and A, worked out on the plain model in float64."""
    kl, lr, steps = 3.0, 1e-2, 3
    model = edit_model(
        "llama",
        "lora",
        prefixes=0,
        kl=kl,
        lr=lr,
        steps=steps,
        rank=2,
        alpha=4.0,
        stop_loss=0.0,
        batch=2,
    )
    lm, (path,), edit = model.lm, model.method.paths, EDITS[0]
    texts = model.method.trainer.texts()[0]
    taken = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:2]
    texts = [lm.encode_prompt(texts[i]) for i in taken]
    a, b = thin(model.method.begin().state(), path)
    plain = copy.deepcopy(model.base).double()
    weight = plain.get_submodule(path).weight.detach().clone()
    row = lm.encode(edit.prompt, edit.target, lm.ending_of(edit.prompt, edit.target))

    def said(delta, ids):
        change = {f"{path}.weight": weight + delta}
        return torch.func.functional_call(plain, change, (torch.tensor([ids]),)).logits[0]

    base = [said(0 * weight, ids).log_softmax(-1).detach() for ids in texts]
    moments = [[torch.zeros_like(x), torch.zeros_like(x)] for x in (a, b)]
    for step in range(1, steps + 1):
        a.requires_grad_(), b.requires_grad_()
        delta = 2.0 * b @ a
        loss = F.cross_entropy(
            said(delta, row.ids)[row.prompt_length - 1 : -1],
            torch.tensor(row.ids[row.prompt_length :]),
        )
        now = [said(delta, ids).log_softmax(-1) for ids in texts]
        away = torch.cat(
            [(p.exp() * (p - q)).sum(-1) for p, q in zip(base, now, strict=True)]
        ).mean()
        gradients = torch.autograd.grad(loss + kl * away, (a, b))
        taught = []
        for x, gradient, (mean, square) in zip((a, b), gradients, moments, strict=True):
            mean.mul_(0.9).add_(0.1 * gradient)
            square.mul_(0.999).add_(0.001 * gradient.square())
            taught.append(
                x.detach()
                - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            )
        a, b = taught
    model.edit([edit], check=False)
    got = thin(model.method.state()[0], path)
    torch.testing.assert_close(got[1], b, rtol=0, atol=1e-4)
    torch.testing.assert_close(got[0], a, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", pytest.param("adapter", marks=pytest.mark.long)])
def test_it_learns_and_kl_holds_the_rest(method):
    lost = {}
    for kl in (0.0, 20.0):
        model = edit_model(
            "llama", method, steps=40, lr=0.02, kl=kl, background=32, batch=8, layer=None
        )
        pair = [(EDITS[0].prompt, EDITS[0].target)]
        before = model.lm.score(pair)[0].loss
        batch = model.lm.prompt_batch(background_texts(model.lm, 32, 12, seed=99))
        with torch.no_grad():
            base = model.lm.run(batch).logits[batch.prompt_mask].log_softmax(-1)
        assert model.edit(EDITS[:1]).success_rate == 1
        assert model.lm.score(pair)[0].loss < before / 5
        with torch.no_grad():
            lost[kl] = divergence(
                base, model.lm.run(batch).logits[batch.prompt_mask].log_softmax(-1)
            ).item()
    assert lost[20.0] < 0.7 * lost[0.0], "texts that were not held when it learned"


@pytest.mark.long
def test_rehearsal_keeps_earlier_edits():
    kept = []
    for rehearse in (0, 2):
        model = edit_model(
            "llama", "lora", EDITS[:3], steps=20, lr=0.02, rehearse=rehearse, layer=None, prefixes=0
        )
        kept.append(sum(s.loss for s in model.lm.score([(e.prompt, e.target) for e in EDITS[:2]])))
    assert kept[1] < 0.5 * kept[0]


def test_learned_edits_take_no_steps():
    settings = {"lr": 0.02, "kl": 0.0, "prefixes": 0, "stop_loss": 1.0, "layer": None}
    model, again = (
        edit_model("llama", "lora", EDITS[:1], steps=steps, **settings) for steps in (200, 400)
    )
    assert model.ask([EDITS[0].prompt]) == [EDITS[0].target]
    same_state(model, again)


def test_bad_settings_and_a_missing_library(monkeypatch):
    with pytest.raises(ConfigError, match="dora is no sum"):
        LoraConfig(kind="dora", merge="ties")
    with pytest.raises(ConfigError, match="merge is 'tie'"):
        LoraConfig(merge="tie")
    with pytest.raises(ConfigError, match="rank"):
        LoraConfig(rank=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    model = EditModel(tiny_model("llama"), LoraConfig(background=8, steps=1), tiny_tokenizer())
    with pytest.raises(ConfigError, match=r"pip install 'errata\[peft\]'"):
        model.edit(EDITS[:1])
    assert model.edits == [] and isinstance(model.lm, LM)
