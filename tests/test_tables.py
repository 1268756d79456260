"""The tables of the README and the docs are those that a command writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_the_readmes_table_holds_every_measure_of_the_recorded_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compare_page

    readme, page = tmp_path / "README.md", tmp_path / "compare.md"
    for copy, original in ((readme, compare_page.README), (page, compare_page.PAGE)):
        copy.write_text(original.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(compare_page, "README", readme)
    monkeypatch.setattr(compare_page, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["compare_page.py"])
    compare_page.main()
    assert readme.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8") == (ROOT / "docs" / "compare.md").read_text(
        encoding="utf-8"
    )
    rows = json.loads(compare_page.RESULTS.read_text(encoding="utf-8"))["atlas"]
    folio = next(row for row in rows if row["name"] == "folio" and row["edits"] == 1000)
    said = next(
        line
        for line in readme.read_text(encoding="utf-8").splitlines()
        if line.startswith("| folio |")
    )
    assert f"{folio['figures']['generated']['portability']:.2f}" in said.split("|")[5]
