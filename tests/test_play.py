"""`errata play`: an agent in a folder, what is printed, and wrong input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from errata.cli import app

pytest.importorskip("gymnasium")


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_an_agent_is_a_folder_of_edits(base: Path, tmp_path: Path) -> None:
    agent, lake = tmp_path / "agent", "FrozenLake-v1"
    code, out, _ = run(
        "play", lake, "--model", base, "--route", "folio", "--set", "background=8",
        "--episodes", "2", "--out", agent,
    )  # fmt: skip
    assert code == 0 and "mean return 1.0 (1.0 to 1.0) over 2 episodes, 16 edits" in out
    code, out, _ = run("play", lake, "--model", agent, "--episodes", "1", "--json")
    assert code == 0 and json.loads(out)["mean"] == 1.0
    code, out, _ = run("list", agent)
    assert code == 0 and "From square A1" in out and out.count("script") == 16
    first = json.loads((agent / "edits.jsonl").read_text().splitlines()[0])
    assert run("undo", agent, first["id"])[0] == 0
    assert "From square A1" not in run("list", agent)[1]
    assert run("ask", agent, "From square B1, which way is the next step?")[1].startswith("right")
    for arguments, told in (
        (("CartPole-v1", "--model", agent), "was begun with game 'FrozenLake-v1'"),
        ((lake, "--model", agent, "--route", "wise"), "was begun with route 'folio'"),
    ):
        code, _, err = run("play", *arguments)
        assert code == 2 and told in err and err.count("\n") <= 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("Chess", "--route", "random"), "no translator for the game 'Chess'"),
        (("CartPole-v1",), "the route 'folio' needs a language model"),
        (("CartPole-v1", "--model", "atlas", "--route", "foli"), "no route 'foli'"),
        (
            ("CartPole-v1", "--model", "atlas", "--route", "lora", "--preset", "atlass"),
            "lora has no preset 'atlass'. Did you mean 'atlas'?",
        ),
        (("CartPole-v1", "--route", "random", "--rounds", "2"), "does not learn from episodes"),
        (("CartPole-v1", "--route", "random", "--learn-by", "luck"), "learn-by is 'luck'"),
        (("CartPole-v1", "--model", "tests", "--route", "instructions"), "tests"),
    ],
)
def test_wrong_input_is_one_line(arguments: tuple[str, ...], told: str) -> None:
    code, out, err = run("play", *arguments)
    assert code == 2 and not out and told in err and err.count("\n") == 1


def test_who_needs_no_model_plays_without_one() -> None:
    code, out, _ = run("play", "CartPole-v1", "--route", "scripted", "--episodes", "2")
    assert code == 0 and "mean return 500.0" in out
