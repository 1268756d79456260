"""WISE on real wording: a small model that knows benchmark facts, where `../shared` exists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata import Case, Edit, Probe, WiseConfig, evaluate, get_edit_model, load_base

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODEL, RECORDS = SHARED / "models" / "factlm", SHARED / "data" / "zsre" / "zsre_mend_edit.json"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (MODEL.is_dir() and RECORDS.is_file()),
        reason="../shared/models/factlm and ../shared/data/zsre are not at hand",
    ),
]


def test_wise_corrects_real_facts_and_moves_nothing_else() -> None:
    cases = []
    for record in json.loads(RECORDS.read_text(encoding="utf-8"))[:6]:
        edit = Edit(record["src"], record["alt"], record["subject"])
        cases.append(Case(edit, (record["rephrase"],), (Probe(record["loc"], record["loc_ans"]),)))
    base, tokenizer = load_base(str(MODEL), "float32")
    model = get_edit_model(base, WiseConfig(background=512), tokenizer)
    before = evaluate(model, cases)
    model.edit([case.edit for case in cases], check=False)
    after = evaluate(model, cases)
    assert before.generated["reliability"] == 0
    assert after.generated["reliability"] >= 5 / 6
    assert after.teacher_forced["generalization"] > before.teacher_forced["generalization"] + 0.2
    assert after.generated["locality"] == 1
