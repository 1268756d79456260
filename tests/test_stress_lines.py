"""A short run of `scripts/stress_lines.py`, and that it sees what it should."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def test_spoiled_lines_break_nothing() -> None:
    from stress_lines import lines

    assert lines(60, seed=7) == []


def test_the_lines_are_good_and_bad(tmp_path: Path) -> None:
    from stress_lines import accepted, spoiled

    rng, failures = random.Random(3), list[str]()
    kept = [bool(accepted(tmp_path / "line.jsonl", spoiled(rng), failures)) for _ in range(300)]
    assert 0.15 < sum(kept) / len(kept) < 0.85 and failures == []


def test_a_fault_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stress_lines

    failures: list[str] = []
    monkeypatch.setattr(stress_lines, "read_edits", lambda path: iter([]).__next__())
    monkeypatch.setattr(stress_lines, "mentions", lambda text, name: [])
    stress_lines.accepted(
        tmp_path / "x", b'{"prompt": "Who is Ana?", "target": "x", "subject": "Ana"}', failures
    )
    assert len(failures) == 1 and "StopIteration" in failures[0]
    monkeypatch.setattr(stress_lines, "read_edits", __import__("errata").read_edits)
    stress_lines.accepted(
        tmp_path / "x", b'{"prompt": "Who is Ana?", "target": "x", "subject": "Ana"}', failures
    )
    assert len(failures) == 2 and "not reached by its own prompt" in failures[1]
