"""SPALM over edits against its equations in float64; the gate; deletion."""

from __future__ import annotations

import copy

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model, same_state
from families import tiny_model, tiny_tokenizer
from torch import nn
from torch.nn import functional as F

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.errors import ArchitectureError, ConfigError
from errata.lm.architecture import architecture_of
from errata.lm.hooks import capture_output
from errata.presets import preset

NEAR = {"radius": 1e6}  # every prompt is in scope


def base_states(family: str, ids: list[int]) -> tuple[torch.Tensor, nn.Module]:
    """(what the head reads (n, hidden), the model), in float64."""
    base = copy.deepcopy(tiny_model(family)).double()
    with torch.no_grad(), capture_output(architecture_of(base).body_module(base)) as seen:
        base(torch.tensor([ids]))
    return seen[0][0], base


@pytest.mark.parametrize(
    ("family", "neighbours"), [("llama", 1), ("gemma2", 4), ("gptj", 3)]
)  # plain; caps its logits; a head with a bias
def test_the_head_reads_the_papers_mixture(family: str, neighbours: int) -> None:
    model = edit_model(family, "spalm", EDITS[:4], **NEAR, neighbours=neighbours)
    gate = model.method.patch.gate.double()
    states, tokens = [], []
    for edit in EDITS[:4]:
        row = model.method.encode(edit)
        states.append(base_states(family, list(row.ids))[0][row.prompt_length - 1 : -1])
        tokens += row.ids[row.prompt_length :]
    stored, tokens = torch.cat(states), torch.tensor(tokens)
    row = model.lm.encode("The author of the book lives in", "London")
    own, base = base_states(family, list(row.ids))
    first = row.prompt_length - 1
    head = architecture_of(base).head_module(base)
    values, directions = torch.linalg.eigh(head.weight.T @ head.weight / len(head.weight))
    white = head.weight @ directions @ torch.diag(values.rsqrt()) @ directions.T
    white = white / white.norm(dim=-1, keepdim=True)
    mixed = own.clone()
    for at in range(first, len(row.ids)):
        h = own[at]
        near = (stored - h).norm(dim=-1).argsort()[:neighbours]
        m = (head.weight[tokens[near]] @ h).softmax(0) @ white[tokens[near]]
        g = torch.sigmoid(gate[:-1] @ h + gate[-1])
        mixed[at] = (1 - g) * m / m.norm() * h.norm() + g * h
    with (
        torch.no_grad(),
        architecture_of(base)
        .body_module(base)
        .register_forward_hook(lambda _, __, out: _with(out, mixed[None])),
    ):
        wanted = base(torch.tensor([row.ids])).logits[0]
    prompt = torch.arange(len(row.ids))[None] < row.prompt_length
    with errata.lm.prompt_tokens(prompt), torch.no_grad():
        said = model(torch.tensor([row.ids])).logits[0].double()
    torch.testing.assert_close(said, wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(wanted[first], base(torch.tensor([row.ids])).logits[0, first])


def _with(output: object, states: torch.Tensor) -> object:
    output.last_hidden_state = states  # type: ignore[attr-defined]
    return output


@pytest.mark.long
def test_the_gate_is_lower_at_answers_than_at_text_and_its_loss_has_fallen() -> None:
    model = edit_model("llama", "spalm", EDITS, **NEAR, steps=100, background=32)
    method, patch = model.method, model.method.patch
    stored, text = patch.state()["contexts"], method._background[0]

    def mean(states: torch.Tensor) -> float:
        return float((states @ patch.gate[:-1] + patch.gate[-1]).sigmoid().mean())

    def loss(gate: torch.Tensor) -> float:
        """Of answers and text alike, over the whole vocabulary."""
        patch.gate, total = gate, 0.0
        labels = patch.state()["tokens"], method._background[1]
        for states, follow in zip((stored, text), labels, strict=True):
            logits = model.lm.architecture.head_module(model.base)(patch.mix(states))
            total += float(F.cross_entropy(logits, follow)) / 2
        return total

    assert mean(stored) < mean(text)
    with torch.no_grad():
        trained = patch.gate
        assert loss(trained) < 0.9 * loss(torch.zeros_like(trained))


def test_a_token_is_said_by_what_is_remembered_of_it() -> None:
    """Where a head's embeddings have much in common, a token's own is most like another's."""
    base = tiny_model("llama")
    with torch.no_grad():
        torch.manual_seed(0)
        base.lm_head.weight += 2 * torch.randn(1, base.config.hidden_size)
    model = errata.get_edit_model(base, errata.SpalmConfig(steps=1), tiny_tokenizer())
    model.edit(EDITS, check=False)
    patch, head = model.method.patch, base.lm_head
    stored, tokens = (patch.state()[name] for name in ("contexts", "tokens"))
    with torch.no_grad():
        own = (head(head.weight[tokens]).argmax(-1) == tokens).float().mean()
        assert torch.equal(head(patch.remembered(stored)).argmax(-1), tokens) and own < 0.5


def test_beyond_the_radius_it_is_the_base_model_bit_for_bit() -> None:
    model = edit_model("llama", "spalm", EDITS[:3], radius=1e-3)
    far = [prompt for prompt in PROMPTS if prompt not in [edit.prompt for edit in EDITS[:3]]]
    with torch.no_grad():
        for prompt in PROMPTS:
            batch = model.lm.prompt_batch([prompt])
            with model.disable_edits():
                base = model.lm.run(batch).logits
            assert torch.equal(model.lm.run(batch).logits, base) == (prompt in far)
    assert model.ask(far) == model.ask_base(far)


@pytest.mark.long
def test_of_two_answers_to_one_question_the_later_is_said_and_an_undo_gives_the_other_back(
    tmp_path,
) -> None:
    settings = {"radius": 1e-3, "steps": 60}
    rival = Edit(EDITS[0].prompt, "York", id="rival")
    model = edit_model("llama", "spalm", [*EDITS[:2], rival], **settings)
    model.save_pretrained(tmp_path)
    loaded = errata.EditModel.from_pretrained(tiny_model("llama"), tmp_path, model.tokenizer)
    asked = [edit.prompt for edit in EDITS[:2]]
    for each in (model, loaded):
        assert each.ask(asked) == ["York", EDITS[1].target]
        each.undo("rival")
        assert each.ask(asked) == [edit.target for edit in EDITS[:2]]
        same_state(each, edit_model("llama", "spalm", EDITS[:2], **settings))
        each.undo(*(edit.id for edit in each.edits))
        assert each.method.patch.gate is None and each.ask(asked) == each.ask_base(asked)


@pytest.mark.long
def test_in_how_many_calls_the_ledger_was_written_does_not_matter() -> None:
    at_once, one_by_one = edit_model("gpt2", "spalm", EDITS[:3]), edit_model("gpt2", "spalm")
    for edit in EDITS[:3]:
        one_by_one.edit([edit], check=False)
    same_state(at_once, one_by_one)


def test_an_interrupted_write_leaves_store_and_gate_as_they_were(monkeypatch) -> None:
    model = edit_model("llama", "spalm", EDITS[:2])
    before = copy.deepcopy(model.method.state())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model.method, "_logits", interrupt)
    for change in (lambda: model.edit(EDITS[2:4], check=False), lambda: model.undo(EDITS[0].id)):
        with pytest.raises(KeyboardInterrupt):
            change()
        tensors, values = model.method.state()
        assert values == before[1] and tensors.keys() == before[0].keys()
        assert all(torch.equal(tensors[name], before[0][name]) for name in tensors)
        assert model.edits == EDITS[:2]


@pytest.mark.long
def test_on_atlas_edits_are_said_and_other_questions_keep_their_answers() -> None:
    cases = make_cases(5, seed=3)
    base, tokenizer = errata.load_base("atlas", "float32")
    config = errata.SpalmConfig(**preset("spalm", "atlas").settings)
    model = errata.get_edit_model(base, config, tokenizer)
    model.edit([case.edit for case in cases], check=False)
    found = errata.evaluate(model, cases)
    assert found.generated["reliability"] == found.generated["locality"] == 1
    assert found.generated["generalization"] > 0.5


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ConfigError, match="neighbours is 0"):
        errata.SpalmConfig(neighbours=0)
    base = copy.deepcopy(tiny_model("llama"))
    base.lm_head = nn.Linear(16, 320, bias=False)
    lm = edit_model("llama", "spalm").lm
    lm.model = base
    with pytest.raises(ArchitectureError, match="reads 16 numbers and its blocks write 32"):
        errata.method_class("spalm")(errata.SpalmConfig(), lm)
