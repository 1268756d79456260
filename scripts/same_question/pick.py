"""Picks the wordings that Folio's router is fitted on, and writes them into the package.

    python scripts/same_question/pick.py

Some relations of each kind of subject, half of the wordings of each questions and half sentences
that break off, each about a subject of its own.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "src/errata/methods/association/folio/wordings.jsonl"
RELATIONS, WORDINGS, MOST = 125, 8, 40
"""Relations, wordings of each, and relations about one kind of subject, at most."""


def picked(seed: int = 0) -> list[dict[str, object]]:
    """Relations, each with its kind of subject and its wordings about varying subjects."""
    draw = random.Random(seed)
    lines = [
        json.loads(line)
        for file in sorted((HERE / "relations").glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    draw.shuffle(lines)
    counts: dict[str, int] = {}
    found = []
    for line in lines:
        kind = line["subject"]
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= MOST and len(found) < RELATIONS:
            half = WORDINGS // 2
            some = draw.sample(line["questions"], half) + draw.sample(line["statements"], half)
            texts = [text.replace("{}", draw.choice(line["subjects"])) for text in some]
            found.append({"relation": line["relation"], "subject": kind, "wordings": texts})
    return found


if __name__ == "__main__":
    OUT.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in picked()), encoding="utf-8"
    )
    print(f"{OUT.name}: {sum(len(line['wordings']) for line in picked())} wordings")
