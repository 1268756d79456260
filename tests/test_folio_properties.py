"""What holds of Folio in any order and batches of edits, and after any undo.

The model compared with is always one that had the remaining edits written into it in one call and
nothing else.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.methods.association.folio.config import FolioConfig

CASES = make_cases(5, seed=9)
EDITS = [case.edit for case in CASES]
PROMPTS = [
    text
    for case in CASES
    for text in (case.edit.prompt, case.rephrases[0], case.locality[2].prompt)
]
TARGETS = [edit.target for edit in EDITS]
FEW = settings(
    deadline=None, max_examples=3, derandomize=True, suppress_health_check=list(HealthCheck)
)
_KNOWN: dict[Any, Any] = {}


def fresh() -> errata.EditModel:
    """Atlas without edits. The background is read once for all: it depends on the model alone."""
    if not _KNOWN:
        base, tokenizer = errata.load_base("atlas", "float32")
        model = errata.get_edit_model(base, FolioConfig(), tokenizer)
        model.method.calibrate()
        _KNOWN["base"], _KNOWN["tokenizer"], _KNOWN["calibration"] = (
            base,
            tokenizer,
            model.method.patch.calibration,
        )
    else:
        _KNOWN["open"].method.patch.remove()
        model = errata.get_edit_model(_KNOWN["base"], FolioConfig(), _KNOWN["tokenizer"])
        model.method.patch.reset(_KNOWN["calibration"])
    _KNOWN["open"] = model
    return model


def what_it_is(model: errata.EditModel) -> tuple[dict[str, Any], list[str]]:
    """Its leaves, bit for bit, and its answers."""
    leaves = {
        leaf.edit.id: (leaf.subject, leaf.intent, leaf.tokens, leaf.key.tolist())
        for leaf in model.method.patch.leaves
    }
    return leaves, model.ask(PROMPTS)


def written_at_once(edits: list[Edit]) -> tuple[dict[str, Any], list[str]]:
    """What a model is into which these were written in one call, in this order."""
    key = tuple(edit.id for edit in edits)
    if key not in _KNOWN:
        model = fresh()
        model.edit(edits, check=False)
        _KNOWN[key] = what_it_is(model)
    return _KNOWN[key]


@FEW
@given(st.permutations(EDITS), st.lists(st.integers(1, len(EDITS) - 1), unique=True).map(sorted))
def test_neither_order_nor_batches_matter(order, cuts):
    model = fresh()
    for start, stop in zip([0, *cuts], [*cuts, len(order)], strict=True):
        model.edit(order[start:stop], check=False)
    found = what_it_is(model)
    assert found == written_at_once(EDITS)


@FEW
@given(st.permutations(EDITS), st.integers(1, len(EDITS)), st.booleans())
def test_undo_in_any_order_is_as_if_never_written_and_redo_as_if_never_undone(
    order, count, one_by_one
):
    model = fresh()
    model.edit(EDITS, check=False)
    gone = order[:count]
    for ids in [[edit.id] for edit in gone] if one_by_one else [[edit.id for edit in gone]]:
        model.undo(*ids)
    undone = what_it_is(model)
    model.edit(gone, check=False)
    redone = what_it_is(model)
    assert undone == written_at_once([edit for edit in EDITS if edit not in gone])
    assert redone == written_at_once(EDITS)


class Rivals(RuleBasedStateMachine):
    """Edits of one question, of which the latest that is there answers; undone in any order."""

    @initialize()
    def begin(self) -> None:
        self.model = fresh()
        self.there: list[Edit] = []
        self.count = 0

    @rule(
        wording=st.sampled_from([CASES[0].edit.prompt, *CASES[0].rephrases]),
        wanted=st.sampled_from(TARGETS),
    )
    def write(self, wording: str, wanted: str) -> None:
        self.count += 1
        edit = Edit(wording, wanted, CASES[0].edit.subject, id=f"edit-{self.count}")
        report = self.model.edit([edit], check=False)
        assert {old for _, old in report.conflicts} == {
            each.id for each in self.there if each.target != wanted
        }
        self.there.append(edit)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        edit = data.draw(st.sampled_from(self.there))
        self.there.remove(edit)
        self.model.undo(edit.id)

    @rule()
    def save_and_load(self) -> None:
        tensors, values = self.model.method.state()
        self.model.method.load_state(
            self.there, {name: tensor.clone() for name, tensor in tensors.items()}, values
        )

    @invariant()
    def the_latest_answers(self) -> None:
        answers = self.model.ask([CASES[0].edit.prompt, *CASES[0].rephrases])
        if self.there:
            assert answers == [f"{self.there[-1].target}."] * len(answers)
        else:
            assert answers == self.model.ask_base([CASES[0].edit.prompt, *CASES[0].rephrases])


TestRivals = Rivals.TestCase
TestRivals.settings = settings(FEW, stateful_step_count=6)


@pytest.mark.parametrize(
    "count", [20, *(pytest.param(count, marks=pytest.mark.long) for count in (40, 150))]
)
def test_undo_of_a_tenth_of_a_long_stream_equals_never_written(count):
    """The same of 1,000 edits is in `benchmarks/folio.py`."""
    edits = [case.edit for case in make_cases(count, seed=4)]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    gone = {edits[place].id for place in order[: count // 10]}
    model = fresh()
    model.edit(edits, check=False)
    for name in sorted(gone):
        model.undo(name)
    undone = what_it_is(model)
    assert undone == written_at_once([edit for edit in edits if edit.id not in gone])
