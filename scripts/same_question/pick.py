"""Picks the wordings that Folio's router is fitted on, and writes them into the package.

    python scripts/same_question/pick.py

`wordings.jsonl`: some relations of each kind of subject, half of the wordings of each questions and
half sentences that break off, all relations of a kind about the same few subjects.
`intents.jsonl`: the ways of asking of this folder's file of that name, filled with a relation that
is drawn, some of them behind a sentence about something else.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FOLIO = HERE.parents[1] / "src/errata/methods/association/folio"
RELATIONS, WORDINGS, MOST = 62, 10, 40
"""Relations, wordings of each, and relations about one kind of subject, at most."""
SEED = 7
"""Of eight, the best on SmolLM2, Gemma and Qwen2.5, by records that nothing is reported on."""
TIMES = {"answer": (1, 1), "former": (1, 1), "exclude": (1, 1), "describe": (1, 1)}
"""How often each wording of an intent is filled, alone and behind a sentence; once where not told.
"""
OPTIONS = 4


def relations() -> list[dict[str, Any]]:
    """Return all relations."""
    files = sorted((HERE / "relations").glob("*.jsonl"))
    return [line for file in files for line in _lines(file)]


def picked_wordings(seed: int = SEED) -> list[dict[str, object]]:
    """Return some relations, each with its kind of subject and its wordings."""
    draw, lines = random.Random(seed), relations()
    draw.shuffle(lines)
    counts: dict[str, int] = {}
    chosen = []
    for line in lines:
        counts[line["subject"]] = counts.get(line["subject"], 0) + 1
        if counts[line["subject"]] <= MOST and len(chosen) < RELATIONS:
            chosen.append(line)
    found = []
    for line in chosen:
        subjects = _subjects_of(line["subject"], chosen)
        draw.shuffle(subjects)
        half = WORDINGS // 2
        some = draw.sample(line["questions"], half) + draw.sample(line["statements"], half)
        texts = [text.replace("{}", name) for text, name in zip(some, subjects, strict=True)]
        kind = {"relation": line["relation"], "subject": line["subject"]}
        found.append({**kind, "about": subjects, "wordings": texts})
    return found


def _subjects_of(kind: str, lines: list[dict[str, Any]]) -> list[str]:
    """Return as many subjects of a kind as there are wordings, the same for all its relations."""
    known = [name for line in lines if line["subject"] == kind for name in line["subjects"]]
    names = list(dict.fromkeys(known))
    random.Random(kind).shuffle(names)
    return (names * WORDINGS)[:WORDINGS]


def picked_intents(seed: int = SEED) -> list[dict[str, object]]:
    """Return the ways of asking, each with texts that ask so."""
    draw, lines = random.Random(seed), relations()
    *intents, last = _lines(HERE / "intents.jsonl")
    found: list[dict[str, object]] = []
    for intent in intents:
        alone, behind = TIMES.get(intent["intent"], (1, 0))
        texts = []
        for wording in (alone + behind) * intent["wordings"]:
            line = draw.choice(lines)
            subject = draw.choice(line["subjects"])
            if len(texts) >= alone * len(intent["wordings"]):
                wording = f"{draw.choice(last['aside'])} {wording}"
            options = _options(draw, line, lines)
            texts.append(wording.format("", *options, **_parts(draw, line, subject)))
        found.append({"intent": intent["intent"], "texts": texts})
    return found


def _parts(draw: random.Random, line: dict[str, Any], subject: str) -> dict[str, str]:
    question, statement = (
        draw.choice(line[name]).replace("{}", subject) for name in ("questions", "statements")
    )
    return {"question": question, "statement": statement, "subject": subject}


def _options(draw: random.Random, line: dict[str, Any], lines: list[dict[str, Any]]) -> list[str]:
    """Return answers, those of the relation first."""
    own = list(dict.fromkeys(line["answers"]))
    draw.shuffle(own)
    return (own + [draw.choice(draw.choice(lines)["answers"]) for _ in range(OPTIONS)])[:OPTIONS]


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    for name, lines in (("wordings", picked_wordings()), ("intents", picked_intents())):
        (FOLIO / f"{name}.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
        count = sum(len(list(line.values())[-1]) for line in lines)  # type: ignore[call-overload]
        print(f"{name}.jsonl: {count} texts")
