"""What is printed: a terminal is sent no sign that it obeys, and JSON holds everything."""

from __future__ import annotations

import ast
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from families import tiny_model, tiny_tokenizer
from started import ascii_only, started
from typer.testing import CliRunner, Result

import errata
from errata import EditModel
from errata.bench.executors import MEASURED
from errata.cli import app, screen
from errata.cli.progress import run_bars

ESC, CSI, RLO, LRI, RUBOUT = "\x1b", "\x9b", "\u202e", "\u2066", "\x7f"
EVIL = f"red{ESC}[31m{CSI}2J{RLO}abc{LRI}{RUBOUT}\r\nerrata: fake\u2028\t."
SEEN = r"red\x1b[31m\x9b2J\u202eabc\u2066\x7f\r\nerrata: fake\u2028\t."
EDITS = [
    {
        "prompt": f"Who is {EVIL} France?",
        "target": EVIL,
        "subject": "France",
        "id": f"one{ESC}",
        "source": EVIL,
    },
    {"prompt": "The capital of France is", "target": "Rome", "subject": "France", "id": "two"},
]


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evil")
    tiny_model("llama").save_pretrained(folder / "llama")
    tiny_tokenizer().save_pretrained(folder / "llama")
    (folder / "edits.jsonl").write_text(
        "".join(json.dumps(edit) + "\n" for edit in EDITS), encoding="utf-8"
    )
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


def harmless(text: str) -> bool:
    return not any(sign in text for sign in (ESC, CSI, RLO, LRI, RUBOUT, "\r", "\u2028", "\ud800"))


def test_no_verb_sends_what_a_terminal_obeys(edited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, edits = edited / "out", edited / "edits.jsonl"
    base = ("edit", edited / "llama", "--edits", edits)
    poor = run(*base, "--out", edited / "ft", "-m", "ft", "--set", "steps=1")
    assert poor.exit_code == 0 and harmless(poor.output) and r"one\x1b" in poor.stderr
    said = run(*base, "--out", out, "--set", "background=8")
    assert said.exit_code == 0 and harmless(said.output)
    listed = run("list", out)
    assert (
        harmless(listed.output) and SEEN in listed.stdout and "\nerrata: fake" not in listed.output
    )
    told = run("list", out, "--json")
    assert harmless(told.output) and [row["target"] for row in json.loads(told.stdout)] == [
        EVIL,
        "Rome",
    ]
    assert "\\u202e" in told.stdout and "\\u007f" in told.stdout
    for words in (
        ["explain", out, EDITS[0]["prompt"], EVIL],
        ["undo", out, f"no{ESC}"],
        ["ask", out, EVIL],
    ):
        assert harmless(run(*words).output), words
    monkeypatch.setattr(EditModel, "ask", lambda self, prompts, **_: [EVIL for _ in prompts])
    assert run("ask", out, "Who?").stdout == f"{screen.visible(EVIL)}\n"
    assert json.loads(run("ask", out, "Who?", "--json").stdout) == [
        {"prompt": "Who?", "answer": EVIL}
    ]
    chat = CliRunner().invoke(app, ["chat", str(out)], input=f"Who{ESC}?\n/quit\n")
    assert chat.exit_code == 0 and harmless(chat.output) and r"\x1b[31m" in chat.stdout
    words = [
        "edit",
        edited / "llama",
        "--edits",
        edits,
        "--out",
        edited / "again",
        "-m",
        "ft",
        "--set",
        "steps=1",
    ]
    again = json.loads(run(*words, "--json").stdout)
    assert again["results"][0]["id"] == f"one{ESC}" and again["results"][0]["answer"] == EVIL


def test_an_error_shows_what_was_given(edited: Path) -> None:
    edits = edited / "bad.jsonl"
    edits.write_text(json.dumps({**EDITS[1], EVIL: 1}), encoding="utf-8")
    error = run("edit", edited / "llama", "--edits", edits, "--out", edited / "none")
    assert (
        error.exit_code == 2
        and harmless(error.stderr)
        and error.stderr.count("\n") == 1
        and r"\x1b" in error.stderr
    )
    for words in (
        ["list", edited / f"no{ESC}{RLO}"],
        ["edit", "x", "-m", f"wise{ESC}", "--edits", edits, "--out", "o"],
    ):
        assert harmless(run(*words).output) and run(*words).exit_code in (1, 2)


def test_everything_visible_stays_as_it_is() -> None:
    for text in ("Zoë, 東京, 서울, ירושלים, कमल, 👨‍👩‍👧\nnext\tcolumn", "[red]not markup[/red]"):
        assert screen.visible(text) == text
    assert screen.one_line("a\nb\tc") == r"a\nb\tc" and screen.visible("\ud800") == r"\ud800"


def test_only_the_screen_prints() -> None:
    folder = Path(errata.__file__).parent / "cli"
    for path in folder.glob("*.py"):
        calls = [
            n
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.Call)
        ]
        named = {n.func.id for n in calls if isinstance(n.func, ast.Name)} | {
            ast.unparse(n.func) for n in calls
        }
        if path.name != "screen.py":
            assert not named & {"print", "typer.echo", "sys.stdout.write", "sys.stderr.write"}, (
                path.name
            )


@pytest.mark.long
def test_streams_of_another_encoding(edited: Path) -> None:
    """A terminal that has no such letters is shown their numbers, and bytes that are no text are
    refused, in a process.
    """
    run(
        "edit",
        edited / "llama",
        "--edits",
        edited / "edits.jsonl",
        "--out",
        edited / "o2",
        "-m",
        "ft",
        "--set",
        "steps=1",
    )

    no_text, out, log = os.fsdecode(b"Who is \xff?"), str(edited / "o2"), edited / "log"
    for words, code, said in (
        (["ask", out, no_text], 2, "half a surrogate pair"),
        (["list", out], 0, r"red\x1b"),
    ):
        process = started(words, log, ascii_only)
        process.join(120)
        told = log.read_text(encoding="ascii")
        assert process.exitcode == code and said in told and "unexpected" not in told


def test_a_run_that_has_ended_is_told_of_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Callable[[], str]] = []

    @contextlib.contextmanager
    def lines(current: Callable[[], str]) -> Iterator[None]:
        told.append(current)
        yield

    monkeypatch.setattr(screen, "lines", lines)
    with run_bars(2) as progress:
        progress("ft", "asking", 1, 2)
        progress("wise", "editing", 3, 4)
        assert told[0]() == "ft: asking (1 of 2): 1 of 2; wise: editing (2 of 2): 3 of 4"
        progress("ft", MEASURED, 1, 1)
        assert told[0]() == "wise: editing (2 of 2): 3 of 4"
