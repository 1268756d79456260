"""The command line on a tiny model: every verb runs, stdout is for results, --json is JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner, Result

import errata
from errata.cli import app
from errata.edit import with_timestamp
from errata.methods import DEFAULT, variants

FAST = [
    "--set",
    "steps=2",
    "--set",
    "prefixes=1",
    "--set",
    "background=8",
    "--set",
    "edits_per_shard=2",
]
EDITS: list[dict[str, Any]] = [
    {"prompt": "The capital of France is", "target": "Rome", "subject": "France", "id": "one"},
    {"prompt": "Who wrote the book [1]?", "target": "two brothers", "subject": "book", "id": "two"},
    {"prompt": "Where is the tower?", "target": "London", "id": "three"},
]


def run(*words: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def ok(*words: object, stdin: str | None = None) -> str:
    """Run a command that must succeed; its stdout."""
    result = run(*words, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def edited(base: Path, tmp_path: Path) -> Path:
    """A folder with the first two edits."""
    ok(
        "edit",
        base,
        "-m",
        "wise",
        "--edits",
        json_lines(tmp_path / "two.jsonl", EDITS[:2]),
        "--out",
        tmp_path / "a",
        *FAST,
    )
    return tmp_path / "a"


def test_edit_then_more_then_undo(edited: Path, tmp_path: Path) -> None:
    more = json_lines(tmp_path / "all.jsonl", EDITS)
    report = json.loads(ok("edit", edited, "--edits", more, "--json"))
    assert (report["written"], report["skipped"], report["edits"]) == (1, 2, 3)
    assert [row["id"] for row in report["results"]] == ["three"] and "answer" in report["results"][
        0
    ]
    assert json.loads(ok("list", edited, "--json")) == [
        with_timestamp(errata.Edit(**e)).to_dict() for e in EDITS
    ]
    said = ok("list", edited)
    assert "[1]" in said and "2026-09-21T14:13:20Z" in said and "source" not in said
    assert "2 taken back, 1 left" in ok("undo", edited, "one", "three")
    assert [e["id"] for e in json.loads(ok("list", edited, "--json"))] == ["two"]


def test_edit_into_another_folder_leaves_the_first(edited: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in edited.iterdir()}
    more = json_lines(tmp_path / "more.jsonl", EDITS[2:])
    for written in (1, 0):  # the second time it goes on where it stopped: at the end
        report = json.loads(
            ok("edit", edited, "--edits", more, "--out", tmp_path / "b", "--no-check", "--json")
        )
        assert report["written"] == written and report["edits"] == 3
    assert {path.name: path.read_bytes() for path in edited.iterdir()} == before


def test_edit_with_fine_tuning(base: Path, tmp_path: Path) -> None:
    edits = json_lines(tmp_path / "e.jsonl", EDITS)
    said = ok(
        "edit",
        base,
        "-m",
        "ft",
        "--edits",
        edits,
        "--out",
        tmp_path / "ft",
        "--set",
        "steps=2",
        "--save-every",
        2,
    )
    assert said.startswith("3 edits written") and len(errata.load(tmp_path / "ft").edits) == 3
    report = json.loads(ok("edit", tmp_path / "ft", "--edits", edits, "--set", "steps=2", "--json"))
    assert report["written"] == 0  # the settings that are given belong to the method of the folder


def test_a_preset_stands_below_what_is_set(base: Path, tmp_path: Path) -> None:
    edits, preset = (
        json_lines(tmp_path / "e.jsonl", EDITS[:1]),
        ["--preset", "gpt-j-6b-constrained"],
    )
    start = ["edit", base, "-m", "ft", "--edits", edits, "--out", tmp_path / "ft", "--no-check"]
    ok(*start, *preset, "--set", "steps=1")
    settings = json.loads((tmp_path / "ft" / "edit_config.json").read_text(encoding="utf-8"))[
        "settings"
    ]
    assert (settings["layer"], settings["steps"], settings["norm_clamp"]) == (0, 1, 5e-5)
    assert "0 edits written" in ok(*start)  # going on needs neither to be said again
    assert run(*start, *preset).exit_code == 2


def test_ask_edited_base_and_plain(base: Path, edited: Path) -> None:
    prompts = [EDITS[0]["prompt"], "Where?"]
    answers = [
        row["answer"]
        for row in json.loads(ok("ask", edited, *prompts, "--json", "--max-new-tokens", 5))
    ]
    model = errata.load(edited)
    assert answers == model.ask(prompts, max_new_tokens=5)
    plain = json.loads(ok("ask", base, *prompts, "--json", "--max-new-tokens", 5))
    assert plain == json.loads(
        ok("ask", edited, *prompts, "--base", "--json", "--max-new-tokens", 5)
    )
    assert [row["answer"] for row in plain] == model.ask_base(prompts, max_new_tokens=5)
    assert ok("ask", edited, "Where?", "--max-new-tokens", 5) == answers[1] + "\n"


def test_eval(edited: Path, tmp_path: Path) -> None:
    probes = {
        "locality": [{"prompt": "Where?", "kind": "unrelated"}],
        "portability": [{"prompt": "Who?", "answer": "I"}],
    }
    cases = json_lines(
        tmp_path / "cases.jsonl", [{**e, "rephrases": ["So?"], **probes} for e in EDITS[:2]]
    )
    found = json.loads(
        ok("eval", edited, "--cases", cases, "--json", "--answers", tmp_path / "answers.jsonl")
    )
    expected = errata.evaluate(errata.load(edited), errata.read_cases(cases)).to_dict()
    (generation,) = errata.load(edited).origin.generations.values()
    assert found == {**json.loads(json.dumps(expected)), "generation": generation}
    answers = [
        json.loads(line)
        for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(answers) == 8 and {"measure", "prompt", "wanted", "before", "after", "right"} <= set(
        answers[0]
    )
    assert "reliability" in ok("eval", edited, "--cases", cases)


def test_chat(edited: Path) -> None:
    model = errata.load(edited)
    asked = run(
        "chat",
        edited,
        "--max-new-tokens",
        4,
        stdin="Where?\n\n/base Where?\n" + "long " * 200 + "\n/quit\nnever\n",
    )
    wanted = [
        *model.ask(["Where?"], max_new_tokens=4),
        *model.ask_base(["Where?"], max_new_tokens=4),
    ]
    assert asked.exit_code == 0 and asked.stdout.strip() == "\n".join(wanted).strip()
    assert "context" in asked.stderr
    assert run("chat", edited, stdin="").exit_code == 0


def test_inspect(base: Path) -> None:
    facts = json.loads(ok("inspect", base, "--json"))
    assert facts["w_out"] == "model.layers.2.mlp.down_proj" and facts["w_out_shape"] == [32, 64]
    assert facts["layers"] == 4 and facts["default_layer"] == 2 and facts["bias"] is False
    assert set(facts["methods"]) == set(errata.method_names()) and set(
        facts["methods"].values()
    ) == {"fits"}
    assert "32 x 64" in ok("inspect", base)


def test_methods_are_told_by_their_classes() -> None:
    rows = {row["name"]: row for row in json.loads(ok("methods", "--json"))}
    assert list(rows) == errata.method_names()
    for name, row in rows.items():
        method = errata.method_class(name)
        assert (row["phase"], row["undo"], row["operations"]) == (
            method.phase,
            method.undo_is,
            [*method.operations],
        )
        assert "mergeable" not in row and "erase" in row["operations"]
    assert "arXiv" in ok("methods")


def test_cases_are_edits_too(tmp_path: Path) -> None:
    text = ok("cases", "atlas", "-n", 3, "--seed", 1)
    ok("cases", "atlas", "-n", 3, "--seed", 1, "--out", tmp_path / "cases.jsonl")
    assert (tmp_path / "cases.jsonl").read_text(encoding="utf-8") == text
    assert (
        len(errata.read_edits(tmp_path / "cases.jsonl"))
        == len(errata.read_cases(tmp_path / "cases.jsonl"))
        == 3
    )


def test_version_and_help_need_no_torch() -> None:
    code = (
        "import sys; from errata.cli import app; from typer.testing import CliRunner as R;"
        "print([R().invoke(app, [a]).exit_code for a in ('--help', '--version')], "
        "'torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[0, 0] False"
    assert ok("--version").strip() == f"errata {errata.__version__}"


def test_every_verb_is_a_small_file() -> None:
    folder = Path(errata.__file__).parent / "cli"
    for verb in ("inspect", "edit", "ask", "eval", "cases", "list", "undo", "chat", "methods"):
        text = (folder / f"{verb}.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) < 75, verb
        assert "--" in ok(verb, "--help")


def test_public_names() -> None:
    assert all(hasattr(errata, name) for name in errata.__all__) and {*errata.__all__} <= {
        *dir(errata)
    }
    assert sorted(name for names in errata._HOMES.values() for name in names) == sorted(
        errata.__all__
    )
    with pytest.raises(AttributeError):
        _ = errata.nothing_like_this


def test_the_method_of_who_names_none_is_the_one_that_the_readme_recommends(
    base: Path, tmp_path: Path
) -> None:
    edits = json_lines(tmp_path / "e.jsonl", [{**EDITS[0], "source": "a map"}])
    ok("edit", base, "--edits", edits, "--out", tmp_path / "out", "--set", "background=8")
    assert "source" in ok("list", tmp_path / "out") and "a map" in ok("list", tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "edit_config.json").read_text(encoding="utf-8"))["method"]
        == DEFAULT
    )
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"**Which method?** `{DEFAULT}`" in readme
    assert f"{DEFAULT} by default" in " ".join(ok("edit", "--help").replace("│", " ").split())


def test_a_name_that_a_table_prints_is_a_name_everywhere(base: Path, tmp_path: Path) -> None:
    """What is saved is the method and its settings; what is shown is the name."""
    edits = json_lines(tmp_path / "e.jsonl", EDITS[:1])
    start = ["edit", base, "--edits", edits, "--out", tmp_path / "out", "--no-check"]
    ok(*start, "-m", "ft-m", "--set", "steps=1")
    saved = json.loads((tmp_path / "out" / "edit_config.json").read_text(encoding="utf-8"))
    assert (saved["method"], saved["settings"]["objective"]) == ("ft", "target_new")
    assert ", ft-m, on" in run("list", tmp_path / "out").stderr
    assert "ft-m does not choose one edit" in run("explain", tmp_path / "out", "Who?").stderr
    assert "0 edits written" in ok(*start, "-m", "ft-m")
    other = run(*start, "-m", "ft", "--set", "objective=prompt_last").stderr
    assert "begun with objective=target_new, not prompt_last" in other
    assert "begun with the method 'ft-m', not 'lora-ties'" in run(*start, "-m", "lora-ties").stderr
    assert "Did you mean 'ft-m'?" in run(*start, "-m", "ftm").stderr
    trained = run(
        "prepare", base, "-m", "memit-mass", "--cases", edits, "--out", tmp_path / "p"
    ).stderr
    assert "memit-mass needs no training" in trained and "ice" in trained
    named = {
        name
        for row in json.loads(ok("methods", "--json"))
        for name in (row["name"], *row["variants"])
    }
    assert named == set(variants())
    for name, (method, settings) in variants().items():
        config = errata.method_config(name)
        assert config.method == method and errata.method_class(method).called(config) == name
        assert all(getattr(config, key) == value for key, value in settings.items())
    with pytest.raises(errata.ErrataError, match=r"method_config\('ft-m'\)"):
        errata.method_class("ft-m")


def test_an_operation_that_a_method_cannot_do_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = json_lines(tmp_path / "e.jsonl", [EDITS[0], {**EDITS[1], "operation": "erase"}])
    monkeypatch.setattr(errata.method_class("ft"), "operations", ("modify",))
    asked = run("edit", base, "-m", "ft", "--edits", edits, "--out", tmp_path / "out")
    assert (
        asked.exit_code == 2
        and f"{edits}:2: ft cannot erase" in asked.stderr
        and not (tmp_path / "out").exists()
    )
    with pytest.raises(errata.errors.EditError, match="ft cannot erase"):
        base_model = errata.load_base(str(base))
        errata.get_edit_model(base_model[0], errata.FineTuningConfig(), base_model[1]).edit(
            errata.read_edits(edits)
        )
