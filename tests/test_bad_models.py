"""Base models that are not whole, and caches that cannot be written: one line, and no guessing.

GGUF files are in `test_gguf.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from edited import EDITS, edit_model
from families import tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from test_bad_input import fails
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.errors import ConfigError
from errata.lm.background import background_texts
from errata.storage.identity import weights_digest

WHOLE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "edits.jsonl").write_text(json.dumps(EDITS[0].to_dict()))
    return tmp_path / "base"


def without_a_tensor(folder: Path) -> str:
    weights = load_file(folder / WHOLE)
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / WHOLE, {"format": "pt"})
    return "1 of its weights are missing (model.layers.1.mlp.down_proj.weight)"


def without_half_of_them(folder: Path) -> str:
    weights = load_file(folder / WHOLE)
    kept = {name: tensor for name, tensor in weights.items() if "layers.1" not in name}
    save_file(kept, folder / WHOLE, {"format": "pt"})
    return "9 of its weights are missing (model.layers.1.input_layernorm.weight"


def with_another_shape(folder: Path) -> str:
    weights = load_file(folder / WHOLE)
    weights["lm_head.weight"] = weights["lm_head.weight"][:-1].clone()
    save_file(weights, folder / WHOLE, {"format": "pt"})
    return "cannot be loaded"


def without_a_shard(folder: Path) -> str:
    (folder / WHOLE).unlink()
    tiny_model("llama").save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[1].unlink()
    return shards[1].name


def cut_off(folder: Path) -> str:
    (folder / WHOLE).write_bytes((folder / WHOLE).read_bytes()[:-100])
    return "cannot be loaded"


def without_weights(folder: Path) -> str:
    (folder / WHOLE).unlink()
    return WHOLE


def quantized_by_a_missing_library(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    return "bitsandbytes"


@pytest.mark.parametrize(
    "spoil",
    [
        without_a_tensor, without_half_of_them, with_another_shape, without_a_shard, cut_off,
        without_weights, quantized_by_a_missing_library,
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole(folder: Path, spoil: Callable[[Path], str]) -> None:
    said = spoil(folder)
    told = fails(2, "ask", folder, "Who?")
    assert f"model '{folder}' cannot be loaded: " in told and said in told
    edits = folder.parent / "edits.jsonl"
    out = folder.parent / "out"
    assert said in fails(2, "edit", folder, "--edits", edits, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("dtype", ["int3", "int8", "float8_e4m3fn", "", "half precision"])
def test_a_type_that_there_is_not(folder: Path, dtype: str) -> None:
    edits = folder.parent / "edits.jsonl"
    for words in (
        ["edit", folder, "--edits", edits, "--out", folder.parent / "out"],
        ["bench", "atlas"],
        ["compare", "atlas"],
        ["ability", folder, "--tasks", "x"],
        ["ask", folder, "Who?"],
        ["chat", folder],
        ["inspect", folder],
    ):
        told = fails(2, *words, "--dtype", dtype)
        assert "dtype" in told and "is unknown; try float32, bfloat16 or float16." in told
    with pytest.raises(ConfigError, match="is unknown"):
        errata.load_base(str(folder), dtype)


def test_a_chat_without_a_template(folder: Path) -> None:
    edits, out = folder.parent / "edits.jsonl", folder.parent / "out"
    on = ["--edits", edits, "--out", out, "-m", "ft", "--set", "chat_template=true"]
    assert "no chat template; leave it out" in fails(2, "edit", folder, *on)
    assert not out.exists()
    told = fails(2, "ability", folder, "--tasks", "any", "--chat")
    assert "no chat template; leave it out" in told


def test_a_tokenizer_without_an_end_token(folder: Path) -> None:
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        settings = {key: value for key, value in settings.items() if not key.startswith("eos_")}
        (folder / name).write_text(json.dumps(settings))
    assert CliRunner().invoke(app, ["ask", str(folder), "Who?"]).exit_code == 0
    edits, out = folder.parent / "edits.jsonl", folder.parent / "out"
    words = ["edit", folder, "--edits", edits, "--out", out, "-m", "ft", "--set", "steps=1"]
    told = fails(2, *words)
    assert "no end token" in told and "--set end_token=false" in told
    assert not out.exists()
    done = CliRunner().invoke(app, [*map(str, words), "--set", "end_token=false", "--no-check"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_a_cache_that_cannot_be_written(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (file := folder.parent / f"cache of {place}").write_text("in the way")
    monkeypatch.setenv("ERRATA_CACHE", str(file if place == "file" else file / "below"))
    model = edit_model("llama", "wise")
    with caplog.at_level(logging.WARNING):
        texts = background_texts(model.lm, 4, 8, seed=3)
        assert background_texts(model.lm, 4, 8, seed=3) == texts  # made again
        assert weights_digest(errata.load_base(str(folder))[0]) == weights_digest(model.base)
    (said,) = [record.getMessage() for record in caplog.records]  # once
    assert str(file) in said and "ERRATA_CACHE" in said and "\n" not in said
    edits, out = folder.parent / "edits.jsonl", folder.parent / "out"
    words = ["edit", folder, "--edits", edits, "--out", out, "-m", "ft", "--set", "steps=1"]
    assert CliRunner().invoke(app, [*map(str, words), "--no-check"]).exit_code == 0
