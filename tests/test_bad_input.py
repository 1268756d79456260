"""Bad input on the command line: one line on stderr, the right exit code, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from started import no_file_beyond, started
from typer.testing import CliRunner

from errata import EditModel, load, saving
from errata.cli import app
from errata.saving import transaction

FAST = ["--set", "steps=2", "--set", "prefixes=1", "--set", "background=8"]
GOOD: dict[str, Any] = {
    "prompt": "The capital of France is",
    "target": "Rome",
    "subject": "France",
    "id": "one",
}
MORE: dict[str, Any] = {"prompt": "Where is the tower?", "target": "London", "id": "two"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: two that fit, two that do not, and edits of the first."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("llama", "gpt2", "mixtral", "mamba"):
        tiny_model(name).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "good.jsonl").write_text(json.dumps(GOOD))
    words = [
        "edit",
        folder / "llama",
        "-m",
        "wise",
        "--edits",
        folder / "good.jsonl",
        "--out",
        folder / "edited",
        *FAST,
    ]
    assert CliRunner().invoke(app, [*map(str, words)]).exit_code == 0
    return folder


@pytest.fixture
def edited(models: Path, tmp_path: Path) -> Path:
    """A copy of the edits, to be spoiled."""
    folder = tmp_path / "edited"
    folder.mkdir()
    for name, content in contents(models / "edited").items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def fails(code: int, *words: object) -> str:
    """Run a command that must fail with this code; its one line on stderr."""
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == code, result.output
    said = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
    assert result.stdout == "" and len(said) == 1 and said[0].startswith("errata: "), result.output
    return result.stderr


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


LONG = {"prompt": "word " * 200, "target": "Rome"}
SPOILED = {
    "missing field": ({"prompt": "Who?"}, "the field 'target' is missing"),
    "empty target": ({"prompt": "Who?", "target": " "}, "'target' is empty"),
    "subject elsewhere": (
        {"prompt": "Who?", "target": "I", "subject": "Kelor"},
        "does not stand in the prompt",
    ),
    "unknown field": ({"prompt": "Who?", "target": "I", "tagret": "I"}, "Did you mean 'target'?"),
    "unknown operation": (
        {"prompt": "Who?", "target": "I", "operation": "remove"},
        "insert, modify, erase",
    ),
    "a null": ({"prompt": "Who?", "target": None}, "'target' must be text, got null"),
    "a null prompt": ({"prompt": None, "target": "I"}, "'prompt' must be text, got null"),
    "half a pair": (
        {"prompt": "Who?", "target": "I\ud800"},
        "half a surrogate pair ('\\ud800') at character 2",
    ),
    "half a pair in the id": (
        {"prompt": "Who?", "target": "I", "id": "\udfff"},
        "'id' holds half a surrogate pair",
    ),
    "half a pair in a name": (
        {"prompt": "Who?", "target": "I", "\ud800": "I"},
        "unknown field '\\ud800'",
    ),
    "a NUL": ({"prompt": "Who\0?", "target": "I"}, "'prompt' holds a NUL at character 4"),
    "infinity": ({"prompt": "Who?", "target": float("inf")}, "'target' must be text, got float"),
    "a list": ({"prompt": "Who?", "target": "I", "operation": []}, "'operation' is []"),
    "an object": (
        {"prompt": "Who?", "target": "I", "operation": {"a": []}},
        "'operation' is {'a': []}",
    ),
    "an id that is a number": (
        {"prompt": "Who?", "target": "I", "id": 0},
        "'id' must be text, got int",
    ),
    "a subject that is a list": (
        {"prompt": "Who?", "target": "I", "subject": ["Who"]},
        "'subject' must be text, got list",
    ),
    "a source that is none": ({"prompt": "Who?", "target": "I", "source": ""}, "'source' is empty"),
    "a time that is none": (
        {"prompt": "Who?", "target": "I", "time": "yesterday"},
        "a time in UTC like",
    ),
    "within a word": (
        {"prompt": "Who is Romeo?", "target": "I", "subject": "Rome"},
        "as words of their own",
    ),
    "a subject without words": (
        {"prompt": "Who?", "target": "I", "subject": "?"},
        "no letter, number or sign",
    ),
    "a subject that is no name": (
        {"prompt": "Who? " * 10_000, "target": "I", "subject": "Who? " * 5_000},
        "'subject' has 25000 characters",
    ),
    "much": (
        {"prompt": "Who? " * 10_000, "target": "I", "subject": "Kelor"},
        "does not stand in the prompt",
    ),
    "not text": ({"prompt": "Who?", "target": 7}, "'target' must be text"),
    "too long": (LONG, "this model's context is 128"),
    "id taken": ({**MORE, "id": "one"}, "already belongs to"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_an_edit_that_is_wrong_names_file_and_line(models: Path, tmp_path: Path, name: str) -> None:
    row, said = SPOILED[name]
    edits = lines(tmp_path / "edits.jsonl", GOOD, row)
    error = fails(
        2,
        "edit",
        models / "llama",
        "-m",
        "wise",
        "--edits",
        edits,
        "--out",
        tmp_path / "out",
        *FAST,
    )
    assert f"{edits}:2: " in error and said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, said",
    [
        (json.dumps(GOOD).encode() + b'\n{"prompt": "\xff\xfe"}', ":2: not UTF-8"),
        (b'\n{"prompt": ', ":2: not JSON"),
        (b"\xff\xfe{\0}\0", ":1: not UTF-8"),
        (b'{"prompt": "a\0b"}', ":1: not JSON: Invalid control character"),
        (b"\n" + b'{"prompt":' + b"[" * 100_000, ":2: lists or objects lie too deep"),
        (
            b'{"prompt": ' + b"[" * 800 + b"]" * 800 + b', "target": "x", "operation": "y"}',
            ":1: 'prompt' must be text",
        ),
        (
            b'{"prompt": "Who?", "target": "x", "operation": ' + b"[" * 800 + b"]" * 800 + b"}",
            ":1: 'operation' is [[[",
        ),
        (b'{"prompt": "Who?", "target": ' + b"9" * 5000 + b"}", ":1: a number is too long"),
        (b'{"prompt": "Who?", "target": 1e999}', ":1: 'target' must be text, got float"),
        (
            b'{"prompt": "Who?", "target": "I", "target": "you"}',
            ":1: the field 'target' stands there twice",
        ),
        (
            b'{"prompt": "Who?", "target": "I", "a": {"b": 1, "b": 2}}',
            ":1: the field 'b' stands there twice",
        ),
        (b'{"prompt": "Who?", "target": NaN}', ":1: 'target' must be text, got float"),
        (b"null", ":1: expected one JSON object a line, got null"),
        (b"[1]", ":1: expected one JSON object"),
        (b"\n \n", ": nothing in it"),
        (None, ": cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_is_no_file_of_edits(
    models: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    edits = tmp_path / "edits.jsonl"
    if content is not None:
        edits.write_bytes(content)
    assert f"{edits}{said}" in fails(
        2, "edit", models / "llama", "--edits", edits, "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (["-m", "wize"], "no method 'wize'. Did you mean 'wise'?"),
        (["-m", "wise", "--set", "step=3"], "no setting 'step'. Did you mean 'steps'?"),
        (["--set", "confidense=.5"], "no setting 'confidense'. Did you mean 'confidence'?"),
        (["-m", "wise", "--set", "steps=many"], "steps is 'many'; expected int"),
        (["-m", "wise", "--set", "mask_ratio=2"], "mask_ratio is 2.0"),
        (["-m", "wise", "--set", "layer=4"], "no layer 4"),
        (["-m", "wise", "--set", "steps"], "--set takes name=value"),
        (["-m", "wise", "--preset", "mistral7b"], "Did you mean 'mistral-7b'?"),
        (["-m", "wise", "--preset", "auto"], "no preset for this llama with 4 layers"),
        (["--dtype", "float23"], "dtype 'float23' is unknown"),
        (["--dtype", "int8"], "dtype 'int8' is unknown"),
        (["--dtype", "nn.Module"], "dtype 'nn.Module' is unknown"),
        (
            ["--device-map", "nowhere"],
            "device_map is 'nowhere'; it is a device or a way to choose one: auto",
        ),
        (["--device-map", "cpu:3"], "torch finds 1 cpu devices here"),
        (["--device-map", "meta"], "torch finds 0 meta devices here"),
        (
            ["--device-map", f"cuda:{torch.cuda.device_count()}"],
            f"torch finds {torch.cuda.device_count()} cuda devices",
        ),
        (["--set", "confidence=1e400"], "confidence is inf; it must lie between"),
        (["--set", "confidence=nan"], "confidence is nan; it must lie between"),
        (["--set", "confidence=-inf"], "confidence is -inf; it must lie between"),
        (["--set", "background=1e400"], "background is '1e400'; expected int"),
        (
            ["--set", "seed=12345678901234567890123"],
            "seed is 12345678901234567890123; it must be a whole number from 0 to",
        ),
        (["--set", "seed=-1"], "seed is -1; it must be"),
        (["--set", f"seed={'9' * 5000}"], "seed is '9999"),
        (["--set", "layer=-1"], "layer is -1; it must lie between 0"),
    ],
)
def test_an_option_that_is_wrong(
    models: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    words = [
        "edit",
        models / "llama",
        "--edits",
        models / "good.jsonl",
        "--out",
        tmp_path / "out",
        *options,
    ]
    assert said in fails(2, *words)
    assert not (tmp_path / "out").exists()


def test_typer_says_what_it_misses() -> None:
    assert CliRunner().invoke(app, ["edit", "atlas"]).exit_code == 2
    assert CliRunner().invoke(app, ["edti"]).exit_code == 2
    assert CliRunner().invoke(app, ["ask", "atlas", "Who?", "--max-new-tokens", "0"]).exit_code == 2


def test_where_to_save(models: Path, tmp_path: Path) -> None:
    start = ["edit", models / "llama", "--edits", models / "good.jsonl"]
    assert "--out DIR" in fails(2, *start)
    assert "is a file" in fails(2, *start, "--out", models / "good.jsonl")
    assert "holds a base model" in fails(2, *start, "--out", models / "gpt2")
    assert "cannot be written" in fails(
        1, *start, "--out", models / "good.jsonl" / "out", "-m", "wise", *FAST
    )


def test_what_was_begun_goes_on_as_it_was_begun(models: Path, edited: Path, tmp_path: Path) -> None:
    before, more = contents(edited), lines(tmp_path / "more.jsonl", MORE)
    go_on = ["edit", edited, "--edits", more]
    assert "was begun with steps=2, not 3" in fails(2, *go_on, "--set", "steps=3")
    assert "was begun with the method 'wise', not 'ft'" in fails(2, *go_on, "-m", "ft")
    assert "no setting 'step'" in fails(2, *go_on, "--set", "step=3")
    other = ["edit", models / "gpt2", "--edits", more, "--out", edited]
    assert "written for" in fails(1, *other)
    elsewhere = tmp_path / "elsewhere"
    words = [
        "edit",
        models / "llama",
        "--edits",
        more,
        "--out",
        elsewhere,
        "-m",
        "wise",
        *FAST,
        "--no-check",
    ]
    assert CliRunner().invoke(app, [*map(str, words)]).exit_code == 0
    assert "already holds other edits" in fails(2, *go_on, "--out", elsewhere)
    assert contents(edited) == before


def test_another_base_model_in_the_place_of_the_first(models: Path, edited: Path) -> None:
    about = json.loads((edited / saving.CONFIG).read_text())
    about["base_model_name_or_path"] = str(models / "gpt2")
    (edited / saving.CONFIG).write_text(json.dumps(about))
    assert "gpt2" in fails(1, "ask", edited, "Who?")


@pytest.mark.parametrize("name", saving.FILES)
def test_a_truncated_file(edited: Path, name: str) -> None:
    (edited / name).write_bytes((edited / name).read_bytes()[:-20])
    assert str(edited / name) in fails(1, "ask", edited, "Who?")
    (edited / name).unlink()
    fails(1, "list", edited)


def test_what_is_no_folder_of_edits(models: Path, tmp_path: Path) -> None:
    for path in (models / "good.jsonl", models / "llama", tmp_path / "nothing"):
        for words in (
            ["list", path],
            ["undo", path, "one"],
            ["eval", path, "--cases", models / "good.jsonl"],
        ):
            assert "not a folder of edits" in fails(1, *words)


def test_no_such_model(models: Path, tmp_path: Path) -> None:
    for words in (["inspect", "nobody/nothing"], ["ask", tmp_path / "nothing", "Who?"]):
        assert "cannot be loaded" in fails(2, *words)
    words = ["edit", "no-such-model", "--edits", models / "good.jsonl", "--out", tmp_path / "out"]
    assert "bundled" in fails(2, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, found", [("mixtral", "a mixture of experts"), ("mamba", "no attention")]
)
def test_models_that_have_no_place_for_edits(
    models: Path, tmp_path: Path, name: str, found: str
) -> None:
    assert found in fails(1, "inspect", models / name)
    words = ["edit", models / name, "--edits", models / "good.jsonl", "--out", tmp_path / "out"]
    assert found in fails(1, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "row, said",
    [
        ({**GOOD, "rephrases": "Who?"}, "'rephrases' must be a list"),
        ({**GOOD, "rephrases": 0}, "'rephrases' must be a list, got int"),
        ({**GOOD, "rephrases": ""}, "'rephrases' must be a list, got str"),
        ({**GOOD, "rephrases": [None]}, "a text in 'rephrases' must be text, got null"),
        ({**GOOD, "rephrases": ["\udc00"]}, "a text in 'rephrases' holds half a surrogate pair"),
        ({**GOOD, "locality": False}, "'locality' must be a list, got bool"),
        ({**GOOD, "locality": [[]]}, "a probe is a JSON object or a text, got list"),
        ({**GOOD, "locality": [{"prompt": "Who?", "kind": []}]}, "locality kind [] is unknown"),
        ({**GOOD, "locality": [{"prompt": "Who?", "kind": 0}]}, "locality kind 0 is unknown"),
        (
            {**GOOD, "locality": [{"prompt": "Who?", "also": 0}]},
            "a probe's 'also' must be a list, got int",
        ),
        (
            {**GOOD, "locality": [{"prompt": "Who?", "also": [{}]}]},
            "an answer in a probe's 'also' must be text, got dict",
        ),
        (
            {**GOOD, "locality": [{"prompt": "Who?", "answer": "\0"}]},
            "a probe's 'answer' holds a NUL",
        ),
        ({**GOOD, "locality": [{"prompt": None}]}, "a probe's 'prompt' must be text, got null"),
        (
            {**GOOD, "locality": [{"prompt": "Who?", "kind": "neighbor"}]},
            "Did you mean 'neighbour'?",
        ),
        ({**GOOD, "portability": [{"prompt": "Who?"}]}, "needs its 'answer'"),
        ({**GOOD, "rephrases": [LONG["prompt"]]}, "this model's context is 128"),
    ],
)
def test_a_case_that_is_wrong(edited: Path, tmp_path: Path, row: dict[str, Any], said: str) -> None:
    cases = lines(tmp_path / "cases.jsonl", GOOD, row)
    error = fails(2, "eval", edited, "--cases", cases, "--json")
    assert f"{cases}:2: " in error and said in error


def test_undo_of_an_unknown_id(edited: Path) -> None:
    before = contents(edited)
    assert "no edit has the id 'onee'. Did you mean 'one'?" in fails(
        2, "undo", edited, "one", "onee"
    )
    assert contents(edited) == before


def test_cases_of_another_world_or_beyond_it(tmp_path: Path) -> None:
    assert "Did you mean 'atlas'?" in fails(2, "cases", "atlass")
    assert "n is 0" in fails(2, "cases", "atlas", "-n", 0)
    assert "cannot be written" in fails(
        1, "cases", "atlas", "-n", 1, "--out", tmp_path / "no" / "folder"
    )


def same(folder: Path, model: EditModel) -> bool:
    """Whether the folder still holds exactly this model."""
    tensors, values = load(folder).method.state()
    kept, plain = model.method.state()
    return values == plain and all(torch.equal(tensors[name], kept[name]) for name in kept)


def test_the_disk_is_full(edited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, old, write = contents(edited), load(edited), transaction.write_new
    more = lines(tmp_path / "more.jsonl", MORE)
    for name in (*saving.FILES, saving.COMPLETE):  # full at each of the writes in turn

        def refuse(path: Path, content: bytes, name: str = name) -> None:
            if path.name.startswith(name):
                path.write_bytes(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, content)

        monkeypatch.setattr(transaction, "write_new", refuse)
        assert "No space left on device" in fails(1, "edit", edited, "--edits", more)
        assert "No space left on device" in fails(1, "undo", edited, "one")
        assert contents(edited) == before and same(edited, old)


@pytest.mark.long
def test_the_disk_really_refuses(edited: Path, tmp_path: Path) -> None:
    """A process that may write no file beyond 1,000 bytes."""
    before, old, more = contents(edited), load(edited), lines(tmp_path / "more.jsonl", MORE)
    log = tmp_path / "log"
    process = started(
        ["edit", str(edited), "--edits", str(more)], log, partial(no_file_beyond, 1000)
    )
    process.join(120)
    loading, said = log.read_text().splitlines()
    assert process.exitcode == 1 and loading.startswith("loading ")
    assert said.startswith(f"errata: {edited}: cannot be written (File too large)")
    assert contents(edited) == before and same(edited, old)


def test_an_error_nobody_thought_of_is_one_line_too(
    edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(EditModel, "ask", broken)
    assert "unexpected RuntimeError: out of memory" in fails(1, "ask", edited, "Who?")
    monkeypatch.setenv("ERRATA_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["ask", str(edited), "Who?"]).exception, RuntimeError)


def test_a_file_may_begin_with_a_mark_of_its_encoding_and_be_a_pipe(
    models: Path, tmp_path: Path
) -> None:
    """A file is read once, so what can be read only once will do."""
    marked = tmp_path / "edits.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps(MORE).encode() + b"\r\n")
    started = [
        [
            "edit",
            models / "llama",
            "-m",
            "ft",
            "--set",
            "steps=1",
            "--no-check",
            "--out",
            tmp_path / "out",
            "--edits",
        ],
        ["eval", tmp_path / "out", "--json", "--cases"],
    ]
    for number, words in enumerate(started):
        pipe = tmp_path / f"pipe-{number}"
        os.mkfifo(pipe)
        with subprocess.Popen(["timeout", "60", "sh", "-c", f"cat '{marked}' > '{pipe}'"]):
            done = CliRunner().invoke(app, [*map(str, words), str(pipe)])
        assert done.exit_code == 0, done.output
    assert "cannot be read (Is a directory)" in fails(2, *started[0], tmp_path)
