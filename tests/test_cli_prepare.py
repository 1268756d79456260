"""`errata prepare`: a trained method without edits; stopped, resumed; then `errata edit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from edited import EXAMPLES
from test_cli import EDITS, base, json_lines, ok, run

import errata
from errata import EditModel
from errata.saving import read_artifact

__all__ = ["base"]

FAST = ["-m", "mend", "--set", "training_steps=3", "--set", "batch=2", "--set", "rank=8"]
CASES: list[dict[str, Any]] = [
    {**e.edit.to_dict(), "rephrases": [*e.rephrases], "locality": [*e.others]} for e in EXAMPLES[:4]
]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    return json_lines(tmp_path / "cases.jsonl", CASES)


def test_prepare_then_edit(base: Path, cases: Path, tmp_path: Path) -> None:
    said = ok("prepare", base, *FAST, "--cases", cases, "--out", tmp_path / "a")
    assert said.startswith("mend trained with 4 cases, 3 steps")
    model = errata.load(tmp_path / "a")
    assert model.edits == [] and model.method.prepared
    again = errata.get_edit_model(model.base, model.method.config, model.tokenizer)
    again.prepare([case.example() for case in errata.read_cases(cases)])
    again.save_pretrained(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")

    before = contents(tmp_path / "a")
    edits = json_lines(tmp_path / "e.jsonl", EDITS)
    report = json.loads(
        ok("edit", tmp_path / "a", "--edits", edits, "--out", tmp_path / "c", "--json")
    )
    assert report["written"] == 3 and contents(tmp_path / "a") == before
    assert ok("edit", tmp_path / "a", "--edits", edits, "--out", tmp_path / "c").startswith(
        "0 edits written"
    )
    assert ok("edit", tmp_path / "a", "--edits", edits, "--no-check").startswith("3 edits written")
    assert contents(tmp_path / "a") == contents(tmp_path / "c")
    assert "is trained already" in ok("prepare", tmp_path / "a", "--cases", cases)
    assert contents(tmp_path / "a") == contents(tmp_path / "c")


@pytest.mark.long
def test_a_pipeline_is_trained_where_one_of_its_methods_is(
    base: Path, cases: Path, tmp_path: Path
) -> None:
    then = "mend training_steps=3 batch=2 rank=8"
    pipeline = ["-m", "pipeline", "--set", "first=rag", "--set", f"then={then}"]
    edits = json_lines(tmp_path / "e.jsonl", EDITS)
    said = fails("edit", base, *pipeline, "--edits", edits, "--out", tmp_path / "a")
    assert f"`errata prepare MODEL -m pipeline --set 'first=rag' --set 'then={then}'" in said
    said = ok("prepare", base, *pipeline, "--cases", cases, "--out", tmp_path / "a")
    assert said.startswith("pipeline trained with 4 cases, 3 steps")
    assert errata.load(tmp_path / "a").method.then.prepared
    assert "is trained already" in ok("prepare", tmp_path / "a", "--cases", cases)
    assert ok("edit", tmp_path / "a", "--edits", edits, "--no-check").startswith("3 edits written")
    assert "pipeline needs no training" in fails(
        "prepare", base, *pipeline[:-1], "then=lora", "--cases", cases, "--out", tmp_path / "b"
    )


@pytest.mark.long
def test_stopped_by_hand_and_run_again(
    base: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["prepare", base, *FAST, "--cases", cases, "--save-every", 1, "--out"]
    save, calls = EditModel.save_pretrained, iter(range(10))

    def interrupted(self: EditModel, path: Path) -> None:
        if next(calls) in (0, 2):
            raise KeyboardInterrupt
        save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(EditModel, "save_pretrained", interrupted)
        for kept in ("no step was saved yet", f"1 of 3 steps are saved in {tmp_path / 'a'}"):
            stopped = run(*words, tmp_path / "a")
            assert stopped.exit_code == 130
            assert stopped.stderr.endswith(
                f"errata: stopped; {kept}. The same command goes on from there.\n"
            )
    assert 0 < read_artifact(tmp_path / "a").values["training_steps_made"] < 3
    assert run("edit", tmp_path / "a", "--edits", cases).exit_code == 2
    assert "2 steps" in ok(
        "prepare", tmp_path / "a", "--cases", cases
    )  # from its own folder, settings as they were
    ok(*words, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert "is trained already" in ok(*words, tmp_path / "a")


def test_a_trained_folder_is_copied(base: Path, cases: Path, tmp_path: Path) -> None:
    ok("prepare", base, *FAST, "--cases", cases, "--out", tmp_path / "a")
    ok("prepare", tmp_path / "a", "--cases", cases, "--out", tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def fails(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 2, result.output
    said = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
    assert result.stdout == "" and len(said) == 1, result.stderr
    return str(result.stderr)


def test_what_cannot_be_trained_is_told_in_a_line(base: Path, cases: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "a"]
    assert (
        "folio needs no training; say with -m one that does (memorizing, retro, memoria, "
        "memoryllm, mplus, mend, ike, ice, serac)" in fails("prepare", base, "--cases", cases, *out)
    )
    assert "ft needs no training" in fails(
        "prepare", "no-such-model", "-m", "ft", "--cases", cases, *out
    )
    assert "cannot be read" in fails(
        "prepare", base, *FAST, "--cases", tmp_path / "none.jsonl", *out
    )
    assert "say with --out DIR" in fails("prepare", base, *FAST, "--cases", cases)
    bare = [{k: v for k, v in row.items() if k != "locality"} for row in CASES]
    assert "'locality'" in fails(
        "prepare", base, *FAST, "--cases", json_lines(tmp_path / "bare.jsonl", bare), *out
    )
    bare = [{k: v for k, v in row.items() if k != "rephrases"} for row in CASES]
    assert "'rephrases'" in fails(
        "prepare", base, *FAST, "--cases", json_lines(tmp_path / "bare.jsonl", bare), *out
    )
    long = json_lines(tmp_path / "long.jsonl", [CASES[0], {**CASES[1], "rephrases": ["zq" * 200]}])
    assert "long.jsonl:2:" in fails("prepare", base, *FAST, "--cases", long, *out)
    assert "errata prepare MODEL -m mend" in fails(
        "edit", base, "-m", "mend", "--edits", cases, *out
    )
    assert not (tmp_path / "a").exists()


def test_what_was_begun_is_kept(base: Path, cases: Path, tmp_path: Path) -> None:
    a, edits = tmp_path / "a", json_lines(tmp_path / "e.jsonl", EDITS[:1])
    ok("prepare", base, *FAST, "--cases", cases, "--out", a)
    assert "was begun with rank=8, not 4" in fails(
        "prepare", base, "-m", "mend", "--set", "rank=4", "--cases", cases, "--out", a
    )
    ok(
        "edit",
        base,
        "-m",
        "ft",
        "--set",
        "steps=1",
        "--edits",
        edits,
        "--out",
        tmp_path / "ft",
        "--no-check",
    )
    assert "holds other edits" in fails("edit", a, "--edits", edits, "--out", tmp_path / "ft")
    assert "1 edits in the model; a method is trained before" in fails(
        "prepare", tmp_path / "ft", "--cases", cases
    )


def test_the_verb_is_a_small_file() -> None:
    folder = Path(errata.__file__).parent / "cli"
    assert len((folder / "prepare.py").read_text(encoding="utf-8").splitlines()) < 75
    assert "--save-every" in ok("prepare", "--help")
