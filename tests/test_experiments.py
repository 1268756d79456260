"""Each experiment, run by its command on atlas: what its numbers show."""

from __future__ import annotations

import json
from importlib import import_module

import masks
import pytest
from command import run

from errata.analyses.context import AnalysisContext
from errata.atlas import make_cases
from errata.solvers.merging import MERGES

QUICK = {"steps": 2, "background": 8, "contrast": 2, "rewordings": 0, "scope_rows": 4}


@pytest.fixture
def measured(tmp_path, capsys):
    """Runs an experiment on six edits; returns its numbers."""
    pytest.importorskip("matplotlib")

    def command(name, *more):
        experiment, out = import_module(name), tmp_path / name
        run(experiment.find, experiment.draw, ["--edits", "6", "--out", str(out), *more])
        assert capsys.readouterr().out.split() == [
            str(out / f"{name}.json"),
            str(out / f"{name}.png"),
        ]
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        kept = json.loads((out / f"{name}.json").read_text())
        assert kept["analysis"] == name and kept["edits"] == 6 and kept["made"]["versions"]["torch"]
        return kept["found"]

    return command


def quick(**more):
    return [
        part for name, value in {**QUICK, **more}.items() for part in ("--set", f"{name}={value}")
    ]


@pytest.mark.long
def test_every_way_to_merge_is_measured(measured):
    found = measured("merges", *quick())
    assert set(found) == set(MERGES) and all(
        0 <= figures["locality"] <= 1 for figures in found.values()
    )


@pytest.mark.long
def test_every_part_is_left_out_once(measured):
    found = measured("ablations", *quick())
    assert len(found) == 7 and "no prefixes" in found


@pytest.mark.long
def test_overlapping_masks_stand_beside_disjoint_ones(measured):
    found = measured("anchors", *quick())
    assert len(found) == 10 and "5 shards of 0.1, disjoint" in found


@pytest.mark.long
def test_masks_meet_as_often_as_theory_says(monkeypatch, tmp_path):
    monkeypatch.setattr(masks, "RATIOS", (0.2, 0.5))
    monkeypatch.setattr(masks, "SHARDS", (2, 3))
    found = masks.find(AnalysisContext("atlas", make_cases(2, seed=4), tmp_path, settings=QUICK))
    for row in found["overlap"]:
        for overlap in row:
            assert overlap["measured"] == pytest.approx(
                overlap["expected"], abs=2 * overlap["within"]
            )
    assert found["overlap"][1][1]["expected"] == 0.125
    masks.draw(found)


@pytest.mark.long
def test_who_is_not_taught_to_stop_does_not(measured):
    found = measured("endings", "-m", "knn-lm")
    taught, untaught = found["knn-lm"], found["knn-lm, no end"]
    assert taught["generated"] == 1.0 and untaught["generated"] == 0.0
    assert untaught["cut"] == untaught["teacher_forced"] == 1.0


@pytest.mark.long
def test_radii_and_weights_over_the_stream(measured):
    found = measured("radii", "-m", "grace")
    assert (
        found["edits"] == [1, 2, 3, 4, 5, 6] and [len(radii) for radii in found["radii"]][-1] == 6
    )
    moved = measured("weights", "-m", "ft", "--set", "steps=2")
    ((_, change),) = moved["change"].items()
    assert moved["edits"][-1] == 6 and change == sorted(change) and change[-1] > 0


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [("radii", "ft", "keeps no codebook"), ("weights", "grace", "changes no weights")],
)
def test_a_method_that_does_not_fit_is_refused(name, method, message, capsys):
    experiment = import_module(name)
    with pytest.raises(SystemExit) as stopped:
        run(experiment.find, experiment.draw, ["-m", method, "--edits", "1"])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.long
def test_perfect_routing_is_at_least_as_good_as_the_router(measured):
    found = measured("scaling", *quick(edits_per_shard=2, false_route=1.0))
    assert found["edits"] == [1, 2, 6]
    assert set(found["measured"]) == {"Merge", "Retrieve", "Retrieve, replay", "perfect routing"}
    assert all(0 <= share <= 1 for shares in found["precision"].values() for share in shares)
    assert found["precision"]["Retrieve"][0] == 1.0, "there is one memory"
    best, own = found["measured"]["perfect routing"][-1], found["measured"]["Retrieve"][-1]
    assert best["reliability"] >= own["reliability"]


@pytest.mark.long
def test_inference_is_timed_for_each_number_of_edits(measured):
    cost = measured("inference", "-m", "folio", "--set", "background=64")
    assert cost["edits"] == [1, 2, 6] and all(
        seconds > 0 for seconds in cost["asked"]["edited prompts"]["token"]
    )
