"""How well a served model's edits hold: what is asked, what is counted, what is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import errata
from errata import Edit
from errata.errors import EditError, UsageError
from errata.serve import measuring
from errata.serve.ledger import Ledger
from errata.serve.measuring import Measurements, Share, cases_for
from errata.serve.service import Service
from errata.words.parts import mentions

MAYOR = Edit("Who is the mayor of Traren?", "Ana Brisk", "Traren", aliases=("Old Traren",))
OSK = Edit("Who is the mayor of Osk?", "Cy Dun", "Osk")
TEXTS = [
    "The mayor of Vunam grew up with Hopa Sims.",
    "Who is the mayor of Old Traren? Repis Stehes.",
    "it rains on most days of the year",
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    torch.set_num_threads(1)
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    folder = tmp_path_factory.mktemp("served")
    served = Service(model, Ledger(f"sqlite:///{folder / 'edits.db'}"))
    yield served
    served.close()


def test_what_is_asked_has_nothing_to_do_with_an_edit_and_is_the_same_each_time():
    cases = cases_for([MAYOR, OSK], {OSK.id: ["Name the mayor of Osk."]}, TEXTS)
    assert [case.edit for case in cases] == [MAYOR, OSK]
    assert [case.rephrases for case in cases] == [(), ("Name the mayor of Osk.",)]
    unrelated = [
        probe.prompt for case in cases for probe in case.locality if probe.kind == "unrelated"
    ]
    assert unrelated == ["The mayor of Vunam grew up with", "it rains on most"]
    near = [probe.prompt for case in cases for probe in case.locality if probe.kind == "neighbour"]
    assert len(near) == 2 and all(text.startswith("Who is the mayor of ") for text in near)
    assert not any(mentions(text, name) for text in near for name in ("Traren", "Osk"))
    assert cases_for([MAYOR, OSK], {OSK.id: ["Name the mayor of Osk."]}, TEXTS) == cases


def test_of_many_edits_some_are_drawn_always_the_same(monkeypatch):
    monkeypatch.setattr(measuring, "MOST_EDITS", 3)
    edits = [Edit(f"Who is the mayor of City{number}?", "Bo") for number in range(10)]
    drawn = [case.edit for case in cases_for(edits, {}, TEXTS)]
    assert len(drawn) == 3 and drawn == [case.edit for case in cases_for(edits, {}, TEXTS)]
    assert cases_for(edits, {}, [])[0].locality == ()


def test_a_version_is_measured_with_how_much_was_asked(service):
    found = Measurements(service)
    with pytest.raises(UsageError, match="there is no edit in the model"):
        found.measure()
    service.edit([MAYOR], "someone")
    first = found.measure()
    assert first.version == service.version == 2
    assert (first.edits, first.drawn, first.worded) == (1, 1, 0)
    assert first.shares["reliability"] == Share(1, 1)
    assert "generalization" not in first.shares
    locality = first.shares["locality"]
    assert 15 <= locality.asked <= measuring.TEXTS + 1
    assert len(first.wrong) == locality.asked - locality.right

    service.edit([OSK], "someone")
    found.word(MAYOR, ["Name the mayor of Traren.", "Name the mayor of Traren."])
    with pytest.raises(EditError, match="another wording is empty"):
        found.word(OSK, [" "])
    steps: list[tuple[int, int]] = []
    second = found.measure(lambda done, of: steps.append((done, of)))
    assert steps[-1][0] == steps[-1][1] > 20
    assert (second.version, second.worded) == (3, 1)
    assert second.shares["generalization"] == Share(1, 1)
    assert found.all == [first, second]
    assert found.measure().version == 3 and len(found.all) == 2
    service.undo([MAYOR.id, OSK.id], "someone")


def test_one_measurement_at_a_time_and_no_change_meanwhile(service, monkeypatch):
    found = Measurements(service)
    service.edit([OSK], "someone")

    def meanwhile(*_: object, **__: object) -> None:
        assert service._writing.locked()
        with pytest.raises(UsageError, match="another measurement runs already"):
            found.measure()
        raise UsageError("broken off")

    monkeypatch.setattr(measuring, "evaluate", meanwhile)
    with pytest.raises(UsageError, match="broken off"):
        found.measure()
    monkeypatch.undo()
    assert found.measure().shares["reliability"] == Share(1, 1)
    service.undo([OSK.id], "someone")
