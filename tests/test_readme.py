"""The README's commands, run as they stand there: what they print is what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from errata.cli import app

ROOT = Path(__file__).resolve().parent.parent


def commands(page: str) -> Iterator[tuple[str, str]]:
    """(command, what it prints) of every `$ ...` in a page's console blocks."""
    for block in re.findall(r"^```console\n(.*?)^```$", page, flags=re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            yield command, output.strip("\n")


def output_of(command: str) -> str:
    """What a command prints on stdout; one of errata's runs in this process."""
    words = shlex.split(command)
    if words[0] != "errata":
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        return done.stdout
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_print_what_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = list(commands((ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(pairs) >= 3
    for command, output in pairs:
        lines = [line.rstrip() for line in output_of(command).splitlines()]
        assert "\n".join(lines).strip("\n") == output, command


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
