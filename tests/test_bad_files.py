"""Recipes, tasks and records that are not valid: one line with the file's name, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from errata.cli import app

BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
)
TASK = 'title = "T"\nversion = 1\npaper = "P"\nmetrics = ["reliability"]\nnew_tokens = 8\n'
TASK += 'file = "x.json"\n'
FIELDS = TASK + '[fields]\nprompt = "p"\ntarget = "t"\n'
NEIGHBOUR = FIELDS + "locality = [{ kind = 'neighbour', prompt = 'x'"

RECIPES = [
    (b"task: [", "not YAML"),
    (b"\xff\xfe", "not UTF-8 (byte 1)"),
    (b"", "expected a mapping"),
    (b"- a", "expected a mapping"),
    (b"task: 3\n? [a]\n: b", "not YAML"),
    (b"task: a\nedits: !!timestamp x", "edits is 'x'; expected int"),
    (b"task: a\nedits: !!python/object:os.system x", "edits is 'x'; expected int"),
    (b"task: a\nedits: [1]", "edits is a list"),
    (b"task: a\nedits: 0", "edits is 0; it must lie between 1"),
    (b"task: a\nedits: -5", "edits is -5"),
    (b"task: a\nedits: " + b"9" * 5000, "edits is '999"),
    (b"task: a\nedits: 12345678901234567890123", "edits is 12345678901234567890123"),
    (b"task: a\nminutes: .inf", "minutes is '.inf'"),
    (b"task: a\nminutes: inf", "minutes is inf"),
    (b"task: a\nminutes: nan", "minutes is nan"),
    (b"task: a\nseed: -1", "seed is -1"),
    (b"task: a\nthreads: 1000000", "threads is 1000000"),
    (b"task: a\njobs: 0", "jobs is 0"),
    (b"task: a\ncheckpoints: []", "checkpoints are numbers of edits"),
    (b"task: a\ncheckpoints: [1, [2]]", "checkpoints is a list"),
    (b"task: a\ncheckpoints: {1: 2}", "checkpoints is a mapping"),
    (b"task: a\nmodel:", "model is empty"),
    (b"task: {a: b}", "task is a mapping"),
    (b"task: a\nmethods: [[wise]]", "methods is a list"),
    (b"task: a\nsettings: {wise: 3}", "settings.wise is no mapping"),
    (b"task: a\nsettings: {wise: {steps: [3]}}", "settings.wise.steps is a list"),
    (b"task: a\ndata: [x]", "data is a list"),
    (b"task: a\ndtype: int8", "dtype 'int8' is unknown"),
    (b"task: a\ndevice_map: nowhere", "device_map is 'nowhere'"),
    (b"task: a\ntasks: b", "unknown 'tasks'"),
    (b"task: a\nedits: " + b"[" * 2_000 + b"]" * 2_000, "too deep"),
    (b"task: a\n" + b"[" * 20_000, ":2: not YAML"),
    (f"{BOMB}task: *y\nmethods: *y".encode(), "unknown 'a'"),
    (
        f"settings:\n  x:\n    {BOMB.strip().replace(chr(10), chr(10) + '    ')}".encode(),
        "at least a 'task'",
    ),
    (
        f"task: a\nsettings:\n  x:\n    {BOMB.strip().replace(chr(10), chr(10) + '    ')}".encode(),
        "settings.x.a is a list",
    ),
    (f"text:\n  - {BOMB.splitlines()[0][3:]}\ntask: a".encode(), "text is a list"),
]
TASKS = [
    (b"title = ", "not TOML"),
    (b"\xff", "not UTF-8"),
    (b"a = " + b"[" * 20_000, "too deep"),
    (b"a = " + b"9" * 5000, "cannot be read"),
    (b"title = 'x'", "version is missing"),
    (TASK.replace("8", "'8'").encode(), "new_tokens is '8'; expected a number"),
    (TASK.replace("8", "-1").encode(), "new_tokens is -1"),
    (TASK.replace("8", "nan").encode(), "new_tokens is nan"),
    (TASK.replace('["reliability"]', "[1]").encode(), "metrics is [1]; expected a list of texts"),
    (TASK.replace('["reliability"]', "3").encode(), "metrics is 3"),
    (f"{TASK}hub = 3".encode(), "hub is 3; expected a table"),
    (f"{TASK}hub = {{ name = 'x' }}".encode(), "hub.file is missing"),
    (f"{TASK}[fields]\nprompt = []".encode(), "fields.prompt is []"),
    (f"{TASK}[fields]\nprompt = 'p'".encode(), "fields.target is missing"),
    (f"{FIELDS}subjekt = 'x'".encode(), "Did you mean 'subject'"),
    (f"{FIELDS}locality = 3".encode(), "expected a list of tables"),
    (
        f"{NEIGHBOUR}, leave_out = {{ a = 'b' }} }}]".encode(),
        "leave_out.by is missing",
    ),
    (
        f"{NEIGHBOUR}, leave_out = {{ by = 'r', a = '(' }} }}]".encode(),
        "leave_out.a: '(' is no regular expression",
    ),
    (f"{FIELDS}locality = [{{ prompt = 'x' }}]".encode(), "fields.locality 1: kind is missing"),
    (
        f"{FIELDS}locality = [{{ kind = 'x', prompt = 'x', answer = 'x' }}]".encode(),
        "locality kind 'x' is unknown",
    ),
    (f"{FIELDS}portability = [{{ kind = 'hop', prompt = 'x' }}]".encode(), "answer is missing"),
]
RECORDS = [
    (b"[" * 20_000, "too deep"),
    (b'[{"p": ' + b"9" * 5000 + b"}]", "a number is too long"),
    (b'[{"p": "Who?", "t": "\\ud800"}]', "half a surrogate pair"),
    (b'[{"p": "Who\\u0000?", "t": "x"}]', "holds a NUL"),
    (b"\xff", "not UTF-8"),
    (b'[{"p": {}, "t": "x"}]', "holds dict"),
    (b"[NaN]", "expected an object, got float"),
]


def told(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1 and len(result.stderr) < 600, result.stderr
    return result.stderr


@pytest.mark.parametrize(("content", "said"), RECIPES)
def test_a_recipe(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    line = told("bench", path)
    assert str(path) in line and said in line


@pytest.mark.parametrize(("content", "said"), TASKS)
def test_a_task(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "task.toml"
    path.write_bytes(content)
    line = told("bench", path)
    assert str(path) in line and said in line


@pytest.mark.parametrize(("content", "said"), RECORDS)
def test_records(tmp_path: Path, content: bytes, said: str) -> None:
    task, data = tmp_path / "task.toml", tmp_path / "x.json"
    task.write_text(FIELDS)
    data.write_bytes(content)
    line = told("bench", task, "--data", data)
    assert str(data) in line and said in line


@pytest.mark.parametrize("at", ["", ",", "1,,2", "x", "-1", "0", "1.5", "9" * 5000, "\u0661,x"])
def test_checkpoints(at: str) -> None:
    assert "numbers" in told("bench", "atlas", "--checkpoints", at)
    assert "numbers" in told("compare", "atlas", "--at", at)


def test_seeds_and_numbers_of_a_plan() -> None:
    for verb in (["bench", "atlas"], ["compare", "atlas"], ["cases", "atlas", "-n", 1]):
        for seed in ("-1", "9" * 23):
            assert f"seed is {seed}" in told(*verb, "--seed", seed)
    assert "minutes is inf" in told("bench", "atlas", "--minutes", "inf")
    assert "edits is 99999999999999999999999" in told("compare", "atlas", "--edits", "9" * 23)
    assert "device_map is 'nowhere'" in told("bench", "atlas", "--device-map", "nowhere")
