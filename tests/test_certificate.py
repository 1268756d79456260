"""A certificate says what was measured and what was not, and not what was forgotten."""

from __future__ import annotations

import hashlib
import json
from html import escape
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.cli import app
from errata.errors import ArtifactError
from errata.lm import LM
from errata.unlearning import Passage
from errata.unlearning.certificate import certificate, page, share
from errata.unlearning.passages import digest

FOUND = {
    "forget": {
        "said": 0.25, "rouge": 0.5, "probability": 0.1, "truth_ratio": None, "exact": 0.3,
        "extraction": 0.2, "broken": 0.0,
    },
    "retain": {
        "said": 1.0, "rouge": 1.0, "probability": 0.9, "truth_ratio": None, "exact": 1.0,
        "extraction": 1.0, "broken": 0.0,
    },
    "utility": 0.9,
}  # fmt: skip
SECRET = [Passage("Who is it?", f"secret <{i}>") for i in range(4)]
KEPT = [Passage("Who else?", f"open {i}") for i in range(2)]


def test_it_says_what_was_measured_and_no_more(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    made = certificate(tmp_path, SECRET, KEPT, FOUND)
    assert made["model"]["files"] == {"weights": hashlib.sha256(b"abc").hexdigest()}
    assert made["statements"][0] == (
        "Asked freely, the model's answer held what was to be forgotten in 1 of 4 (95 % interval "
        "4.6% to 69.9%)."
    )
    assert len(made["statements"]) == 4 and "2 of 2" in made["statements"][3]
    missing = " ".join(made["not_measured"])
    for what in ("trained without", "no attack", "rounded weights", "how it was made to forget"):
        assert what in missing
    shown = page(made)
    assert "secret" not in shown + json.dumps(made) and digest(SECRET) in shown
    assert all(escape(limit) in shown for limit in made["limits"])


def test_with_all_of_it_each_figure_has_its_reference(tmp_path):
    done = {
        "objective": "npo", "paper": "NPO", "steps": 3, "time": "now", "base": "b<", "settings": {},
        "forget": {"sha256": digest(SECRET)},
    }  # fmt: skip
    (tmp_path / "unlearning.json").write_text(json.dumps(done))
    never = {
        **FOUND, "attacks": {"min_k": 0.5}, "quantised": {8: 0.0}, "relearned": {0: 0.0, 5: 0.125}
    }  # fmt: skip
    found = {
        **FOUND, "attacks": {"min_k": 0.75}, "quantised": {8: 0.5}, "relearned": {0: 0.0, 5: 0.5},
        "forget_quality": 0.2, "retrained": never,
    }  # fmt: skip
    made = certificate(tmp_path, SECRET, KEPT, found, [{"id": "e1", "time": "then"}])
    told = "\n".join(made["statements"])
    for said in (
        "a model trained without it: 0.250",
        "is not told apart from one trained without it (two-sample K-S test, p = 0.2)",
        "by min-k tells what was trained on from what never was with an AUC of 0.750 (chance: .5); "
        "a model trained without it: 0.500",
        "With weights rounded to 8 bits the answer held it in 2 of 4",
        "said 50.0% of the others, before 0.0%; a model trained without it: 0.125",
    ):
        assert said in told, told
    assert made["not_measured"] == []
    assert "b&lt;" in page(made) and "edit e1" in page(made)
    worse = certificate(tmp_path, SECRET[:3], KEPT, {**found, "forget_quality": 0.01})
    assert "is told apart from" in "\n".join(worse["statements"])
    assert "other passages than those asked here" in " ".join(worse["not_measured"])
    (tmp_path / "unlearning.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        certificate(tmp_path, SECRET, KEPT, found)


def test_shares_have_wilsons_intervals():
    assert share(0, 100) == "0 of 100 (95 % interval 0.0% to 3.7%)"
    assert share(50, 100) == "50 of 100 (95 % interval 40.4% to 59.6%)"
    assert share(0, 0) == "none asked"


@pytest.mark.long
def test_on_the_command_line(tmp_path: Path) -> None:
    """Of a folder of edits that erase."""
    torch.set_num_threads(1)
    cases = make_cases(4, seed=12)
    base, tokenizer = errata.load_base("atlas", "float32")
    prompts = [case.edit.prompt for case in cases]
    old = [answer.rstrip(".") for answer in LM(base, tokenizer).generate(prompts)]
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    erasing = [Edit(c.edit.prompt, subject=c.edit.subject, operation="erase") for c in cases[:2]]
    model.edit(erasing, check=False)
    folder = tmp_path / "edits"
    model.save_pretrained(folder)
    for name, part in (("f", slice(0, 2)), ("r", slice(2, 4))):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(
                json.dumps({"prompt": p, "target": a})
                for p, a in zip(prompts[part], old[part], strict=True)
            )
        )
    words = ["--forget", str(tmp_path / "f.jsonl"), "--retain", str(tmp_path / "r.jsonl")]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["certify", str(folder), *words, "--out", str(out)])
    assert done.exit_code == 0 and "held what was to be forgotten in 0 of 2" in done.output
    made = json.loads((out / "certificate.json").read_text())
    assert {edit["id"] for edit in made["edits"]} == {edit.id for edit in erasing}
    assert made["measured"]["retain"]["said"] == 1
    assert not any(answer in (out / "certificate.html").read_text() for answer in old[:2])
    wrong = CliRunner().invoke(app, ["certify", "atlas", *words, "--out", str(out)])
    assert wrong.exit_code == 2 and "is no folder" in wrong.output
