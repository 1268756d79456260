"""The wordings of relations that errata's own material consists of."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "scripts" / "same_question" / "relations"


def test_each_wording_has_one_place_for_the_subject_and_one_relation_in_its_file() -> None:
    relations = 0
    for path in sorted(FOLDER.glob("*.jsonl")):
        owner: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            relations += 1
            assert found["relation"] and found["subject"] and found["near"], line[:80]
            assert len(found["subjects"]) >= 6 and len(found["answers"]) >= 3, line[:80]
            assert min(len(found["questions"]), len(found["statements"])) >= 9, line[:80]
            for wording in [*found["questions"], *found["statements"]]:
                assert wording.count("{}") == 1 and wording == wording.strip(), wording
                assert owner.setdefault(wording, found["relation"]) == found["relation"], wording
            assert not any(text.endswith((".", "?", "!")) for text in found["statements"])
    assert relations == 514
