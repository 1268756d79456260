"""The contract on another device than the processor: as on a GPU, where there is none."""

from __future__ import annotations

import tempfile

import other_device
import pytest
import torch
from edited import EDITS, IDS, PROMPTS, VARIANTS, edit_model, logits_of
from families import tiny_model, tiny_tokenizer
from other_device import OtherTensor
from started import in_own_process

import errata.lm.weights
from errata import EditModel
from errata.bench.drift import drift
from errata.cases import Case
from errata.evaluation import evaluate

QUICK, TOKENS = ("folio",), 2
"""A memory of states that also puts text beside the prompt."""


@pytest.mark.long
@pytest.mark.parametrize(
    "methods", [QUICK, pytest.param(IDS, marks=pytest.mark.long)], ids=["quick", "all"]
)
def test_edited_asked_saved_and_undone_on_another_device(methods: tuple[str, ...]) -> None:
    for name in methods:  # a device once registered stays: torch finds an accelerator from then on
        in_own_process(contract, name)


def contract(name: str) -> None:
    other_device.register()
    method, settings = VARIANTS[IDS.index(name)]
    errata.lm.weights.PLAIN = (*errata.lm.weights.PLAIN, OtherTensor)
    with other_device.other_device(), tempfile.TemporaryDirectory() as folder:
        model = edit_model("llama", method, EDITS[:2], device=other_device.NAME, **settings)
        assert model.lm.device.type == other_device.NAME
        answers = model.ask(PROMPTS[:3], max_new_tokens=TOKENS)
        logits = logits_of(model, model.lm)
        found = evaluate(model, Case(EDITS[0]), max_new_tokens=TOKENS)
        assert found.generated["reliability"] is not None
        drift(model, ["The tower is in the north."])
        model.save_pretrained(folder)
        there = tiny_model("llama").to(other_device.NAME)
        again = EditModel.from_pretrained(there, folder, tiny_tokenizer())
        torch.testing.assert_close(logits_of(again, again.lm).cpu(), logits.cpu(), rtol=0, atol=0)
        here = EditModel.from_pretrained(tiny_model("llama"), folder, tiny_tokenizer())
        assert here.ask(PROMPTS[:3], max_new_tokens=TOKENS) == answers
        model.undo(EDITS[0].id)
        assert model.ask(PROMPTS[:1], max_new_tokens=TOKENS)


@pytest.mark.long
def test_what_meets_a_tensor_of_another_device_fails() -> None:
    in_own_process(meetings)


def meetings() -> None:
    other_device.register()
    with other_device.other_device():
        there = torch.arange(4.0, device=other_device.NAME)
        for meet in (
            lambda: there + torch.ones(4),
            lambda: torch.cat([there, torch.ones(1)]),
            lambda: torch.ones(4)[there.long()],
            lambda: there.index_put((torch.tensor([1]),), torch.ones(1)),
        ):
            with pytest.raises(RuntimeError, match="and of the processor"):
                meet()
        with pytest.raises(TypeError, match="call cpu"):
            there.numpy()
        assert (there + 1)[[1, 2]].cpu().tolist() == [2, 3] and there.sum().item() == 6
