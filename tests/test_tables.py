"""The tables of README and docs are those of `make docs`; benchmarks write their files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from errata.bench.stream import Result
from errata.measures import Answer, summary

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("benchmarks", "scripts"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


def test_every_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    import docs

    assert docs.main(["--check"]) == 0, capsys.readouterr().out


def test_the_readmes_table_holds_the_recorded_rows() -> None:
    import docs
    import results

    rows = results.read(docs.README_RESULTS)
    (folio,) = [row for row in rows if (row["method"], row["edits"]) == ("folio", "100")]
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("| folio |")]
    for name, cell in zip(docs.IN_README, line.split("|")[2:], strict=False):
        share, exact = folio.get(name), folio.get(f"{name}, exact")
        if share:
            assert cell.strip() == f"**{share}**" + (f" ({exact})" if exact else "")
    assert folio["passes per edit"] == line.split("|")[-2].strip()


def test_what_was_measured_is_recorded_as_tables_print_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import docs
    import record
    import results

    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(docs, "RESULTS", tmp_path / "results")
    answers = [Answer("reliability", "a", "Who?", "Ana", "Bo", "Ana", True, 0.5, 0.25, cut=True)]
    figures = summary(1000, answers).to_dict()
    measured = {
        "seconds_per_edit": 0.125,
        "peak_memory": 1234.4,
        "bytes_saved": 8650,
        "overhead": {"1": -0.004, "8": 0.06},
    }
    rows = [
        Result(
            "k",
            "folio",
            "folio",
            {"layer": 4},
            "m/atlas",
            "atlas seed 0",
            1000,
            figures,
            **measured,
        ),
        Result(
            "k",
            "rome",
            "rome",
            {},
            "atlas",
            "atlas seed 0",
            1000,
            skipped="would take 72 min of writing",
        ),
        Result("k", "folio", "folio", {}, "atlas", "atlas seed 0", 1, failed="out of memory"),
    ]
    for place, row in enumerate(rows):
        row.save(tmp_path / "run" / "rows" / f"{place}.jsonl")
    names = [f"{name}={tmp_path / 'run'}" for name in ("compare-atlas", "records-zsre")]
    monkeypatch.setattr(sys, "argv", ["record.py", *names])
    record.main()
    first, second = [docs.compared(row) for row in docs.read("compare-atlas")]
    assert (
        first["reliability"] == "1.00 (0.50)"
        and first["generalization"] is None
        and first["saved kB"] == "9"
    )
    assert (
        first["overhead 1 / 8"] == "-0% / +6%"
        and first["s/edit"] == "0.12"
        and "settings" not in first
    )
    assert (
        second["method"] == "rome"
        and second["reliability"] == "would take 72 min of writing"
        and second["s/edit"] == ""
    )
    assert (
        docs.markdown([first]).splitlines()[2].startswith("| 1,000 | folio | 1.00 (0.50) | - | - |")
    )
    assert docs.longest(docs.read("compare-atlas"), "reliability") == [
        {"T = 1,000": "folio", "reliability": "**1.00** (0.50)"}
    ]
    kept, _ = results.read("compare-atlas")
    assert kept["settings"] == "layer=4" and kept["model"] == "atlas" and kept["data"] == "atlas"
    (record_row,) = results.read("records-zsre")
    assert record_row["reliability, cut"] == "1.00" and "generalization" not in record_row


def test_a_page_without_marks_for_a_table_is_refused() -> None:
    import docs

    assert (
        docs.filled("a\n<!-- b -->\nold\n<!-- /b -->\nc", "b", "| new |")
        == "a\n<!-- b -->\n| new |\n<!-- /b -->\nc"
    )
    with pytest.raises(ValueError, match="no marks for the table 'c'"):
        docs.filled("<!-- c -->\n", "c", "")
