"""`errata cache` lists what was computed once for a base model, and removes it."""

from __future__ import annotations

import pytest
import torch
from edited import EDITS
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.methods.association.folio.config import FolioConfig
from errata.storage import cache

RUN = CliRunner()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    model = errata.get_edit_model(tiny_model("llama"), FolioConfig(background=8), tiny_tokenizer())
    model.base.config._name_or_path = "some/model"
    model.edit(EDITS[:1], check=False)
    (tmp_path / "mine.txt").write_text("not errata's")
    (tmp_path / "router-mine.safetensors").write_text("nor this")
    return tmp_path


def test_listed_and_removed(folder):
    listed = RUN.invoke(app, ["cache"]).output
    assert "calibration of a router" in listed and "some/model" in listed
    size = sum(path.stat().st_size for path in folder.glob("*-*.safetensors"))
    size -= (folder / "router-mine.safetensors").stat().st_size
    assert f"3 files, {size / 2**20:.1f} MiB in {folder}" in listed
    assert "2 files" in RUN.invoke(app, ["cache", "--kind", "router", "--clear"]).output
    assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == [
        "background", "mine.txt", "router",
    ]  # fmt: skip
    assert f"1 files, 0.0 MiB removed from {folder}" in RUN.invoke(app, ["cache", "--clear"]).output
    assert RUN.invoke(app, ["cache"]).output == f"0 files, 0.0 MiB in {folder}\n"
    assert {path.name for path in folder.iterdir()} == {"mine.txt", "router-mine.safetensors"}


def test_a_kind_that_there_is_not_is_one_line(folder):
    result = RUN.invoke(app, ["cache", "--kind", "rotuer"])
    assert result.exit_code == 2 and "router" in result.stderr and "\n" not in result.stderr.strip()


def test_what_another_version_kept_under_a_key_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    cache.cached("router", "key", lambda: torch.randn(40))  # whole, and no JSON
    made: list[int] = []
    for _ in range(2):
        assert cache.cached_json("router", "key", lambda: made.append(1) or {"a": [1.5]}) == {
            "a": [1.5]
        }
    assert made == [1]
