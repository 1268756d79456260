"""NeuralDB: each pair of key and value by itself, behind one gate."""

from __future__ import annotations

import pytest
import torch
from edited import EDITS, edit_model, same_state

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.errors import EditError
from errata.methods.association.neuraldb import GatedStore
from errata.presets import preset


def store(gate: float = 0.65) -> GatedStore:
    return GatedStore("nowhere", gate)


def answered(memory: GatedStore, keys: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    found = memory._answer(torch.nn.Identity(), (keys,), outputs)
    return outputs if found is None else found


def test_a_value_is_added_near_its_key_and_nothing_changes_elsewhere() -> None:
    memory = store()
    key, value = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([1.0, -2.0])
    keys = torch.stack([key * 7, torch.tensor([4.0, 0.0, 3.0]), -key, key + 0.1])
    outputs = torch.randn(2, 2, 2)
    assert torch.equal(answered(memory, keys.view(2, 2, 3), outputs), outputs)
    memory.add("one", key[None] / 5, value[None])
    found = answered(memory, keys.view(2, 2, 3), outputs).view(-1, 2)
    before = outputs.view(-1, 2)
    torch.testing.assert_close(found[[0, 3]], before[[0, 3]] + value)
    assert torch.equal(found[[1, 2]], before[[1, 2]])  # cosines of .48 and -1


def test_the_nearest_counts_and_of_equals_the_latest() -> None:
    memory, outputs = store(), torch.zeros(1, 1, 1)
    for name, key, value in (
        ("first", [1.0, 0.0], 1.0), ("far", [0.8, 0.6], 2.0), ("later", [1.0, 0.0], 3.0),
    ):  # fmt: skip
        memory.add(name, torch.tensor([key]), torch.tensor([[value]]))
    asked = torch.tensor([[[5.0, 0.0]]])
    assert answered(memory, asked, outputs).item() == 3.0
    memory.drop(["later"])
    assert answered(memory, asked, outputs).item() == 1.0
    memory.drop(["first"])
    assert answered(memory, asked, outputs).item() == 2.0


def test_more_tokens_than_are_looked_up_at_once() -> None:
    memory = store()
    for place in range(5):
        memory.add(str(place), torch.eye(5)[place : place + 1], torch.tensor([[float(place)]]))
    places = torch.arange(1000) % 5
    found = answered(memory, torch.eye(5)[places][None], torch.zeros(1, 1000, 1))
    assert torch.equal(found.view(-1), places.float())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_neither_the_order_nor_the_number_of_the_others_matters(family: str) -> None:
    one, other = edit_model(family, "neuraldb"), edit_model(family, "neuraldb")
    one.edit(EDITS, check=False)
    for edit in reversed(EDITS):
        other.edit([edit], check=False)
    for edit in EDITS:
        for mine, theirs in zip(
            one.method.patch.columns[edit.id], other.method.patch.columns[edit.id], strict=True
        ):
            assert torch.equal(mine, theirs)
    other.undo([edit.id for edit in EDITS[1:]])
    alone = edit_model(family, "neuraldb", EDITS[:1])
    same_state(other, alone)


@pytest.mark.long
def test_it_is_said_and_other_questions_keep_their_answers() -> None:
    """On atlas, with its preset, whose cases are others."""
    cases = make_cases(6, seed=3)
    base, tokenizer = errata.load_base("atlas", "float32")
    config = errata.NeuralDbConfig(**preset("neuraldb", "atlas").settings)
    model = errata.get_edit_model(base, config, tokenizer)
    prompts = [case.edit.prompt for case in cases]
    others = [probe.prompt for case in cases for probe in case.locality]
    before = model.ask(others)
    model.edit([case.edit for case in cases], check=False)
    answers = model.ask(prompts)
    said = [case.edit.target in answer for case, answer in zip(cases, answers, strict=True)]
    kept = [now == then for now, then in zip(model.ask(others), before, strict=True)]
    assert sum(said) >= 0.5 * len(said) and sum(kept) >= 0.95 * len(kept)
    model.undo([case.edit.id for case in cases])
    assert model.ask(prompts) == model.ask_base(prompts) and model.ask(others) == before


def test_an_edit_without_a_subject_is_refused_in_a_line() -> None:
    model = edit_model("llama", "neuraldb")
    with pytest.raises(EditError, match="needs to know each edit's subject"):
        model.edit([Edit("The capital is", "Rome")], check=False)
