"""What type a base model is computed in, and edits that are opened in another than they had."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model, prepare
from families import tiny_model, tiny_tokenizer
from torch import Tensor
from typer.testing import CliRunner

import errata
from errata import EditModel
from errata.cli import app
from errata.methods.association.defer import GatedPatch
from errata.patches.forward_state import CACHE_STATE
from errata.saving.base_models import computes_in
from errata.storage.identity import weights_digest

ROUTERS = ("wise", "folio", "grace", "defer", "memoir", "knn-lm", "rag", "serac")
"""A method for each kind of router."""


def has(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    """Give this machine's CPU other capabilities."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A folder with a base model in bfloat16."""
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    return tmp_path / "half"


def dtype_of(folder: Path, **options: Any) -> torch.dtype:
    base, _ = errata.load_base(str(folder), **options)
    (dtype,) = {tensor.dtype for tensor in base.state_dict().values()}
    assert dtype == base.dtype
    return dtype


def test_torch_is_asked_what_the_cpu_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, dtype in (("amx_bf16", torch.bfloat16), ("fp16_arith", torch.float16)):
        has(monkeypatch, avx2=True)
        assert not computes_in(dtype)
        has(monkeypatch, **{capability: True})
        assert computes_in(dtype)
    assert computes_in(torch.float32) and computes_in(torch.float64)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    assert not computes_in(torch.bfloat16) and computes_in(torch.float32)


def test_half_precision_is_computed_in_float32_where_the_cpu_cannot(
    half: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    has(monkeypatch, avx512_bf16=True)
    assert dtype_of(half) == torch.bfloat16 and not caplog.records
    has(monkeypatch, avx512_fp16=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert dtype_of(half) == torch.float32
        assert dtype_of(half, dtype="bfloat16") == torch.bfloat16
        assert dtype_of(half, dtype="float16") == torch.float16
    (said,) = [record.getMessage() for record in caplog.records]  # once
    assert str(half) in said and "bfloat16" in said and "float32" in said and "\n" not in said
    full = errata.load_base(str(half))[0].state_dict()
    plain = tiny_model("llama").to(torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, plain[name].float()) for name, tensor in full.items())


def test_what_a_model_computes_when_it_is_made_is_not_rounded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Gemma's scale of embeddings is no weight: converted behind the loading it stays rounded."""
    tiny_model("gemma3").to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    has(monkeypatch)
    (auto, _), (full, _) = (errata.load_base(str(tmp_path), dtype) for dtype in ("auto", "float32"))
    buffers = dict(full.named_buffers())
    assert buffers and auto.dtype == torch.float32
    for name, buffer in auto.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_the_digest_of_converted_weights_is_kept_too(
    half: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    has(monkeypatch)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    base, _ = errata.load_base(str(half))
    assert weights_digest(base) == weights_digest(tiny_model("llama").to(torch.bfloat16))
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text("0" * 64)
    assert weights_digest(errata.load_base(str(half))[0]) == "0" * 64


def test_the_command_line_says_it_in_one_line(
    half: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    has(monkeypatch, avx512_bf16=True)
    base, tokenizer = errata.load_base(str(half))
    model = errata.get_edit_model(base, edit_model("llama", "grace").method.config, tokenizer)
    model.edit(EDITS[:2], check=False)
    model.save_pretrained(tmp_path / "edits")
    assert errata.load(tmp_path / "edits").dtype == torch.bfloat16
    has(monkeypatch)
    told = CliRunner().invoke(app, ["ask", str(tmp_path / "edits"), EDITS[0].prompt])
    (said,) = caplog.records  # pytest keeps it from stderr
    assert told.exit_code == 0 and "does not compute" in said.getMessage()
    assert all(line.startswith("loading ") for line in told.stderr.splitlines())
    assert errata.load(tmp_path / "edits").dtype == torch.float32
    assert errata.load(tmp_path / "edits", "bfloat16").dtype == torch.bfloat16


def routes(model: EditModel) -> Tensor:
    """What the router decided for each prompt."""
    with torch.no_grad():
        read = model.lm.run(model.lm.prompt_batch(PROMPTS), use_cache=True)
    found: Tensor = getattr(read.past_key_values, CACHE_STATE).route
    patch = model.method.patch  # one that gates keeps its gate and its value
    return found[:, 0] >= patch.threshold if isinstance(patch, GatedPatch) else found


@pytest.mark.parametrize(
    ("method", "written"),
    [
        *((method, torch.float32) for method in ROUTERS),
        ("wise", torch.bfloat16),
        *(
            pytest.param(method, torch.bfloat16, marks=pytest.mark.long)
            for method in ("grace", "folio")
        ),
    ],
)
def test_edits_opened_in_another_type_route_the_same(
    method: str, written: torch.dtype, tmp_path: Path
) -> None:
    half = tiny_model("llama").to(torch.bfloat16)
    config = edit_model("llama", method).method.config
    model = EditModel(copy.deepcopy(half).to(written), config, tiny_tokenizer())
    prepare(model)
    model.edit(EDITS[:4], check=False)
    model.save_pretrained(tmp_path)
    (opened,) = {torch.float32, torch.bfloat16} - {written}
    other = EditModel.from_pretrained(half.to(opened), tmp_path, tiny_tokenizer())
    before, after = routes(model), routes(other)
    if method == "memoir":  # masks of columns, at whose edge rounding moves single ones
        assert (after == before).float().mean() > 0.95
    else:
        assert torch.equal(after, before)
    if method != "defer":  # its gate, after so few steps, is open for all
        assert len(set(map(str, before.tolist()))) > 1


@pytest.mark.long
def test_every_command_that_opens_edits_takes_a_type(tmp_path: Path) -> None:
    half, folder = tiny_model("llama").to(torch.bfloat16), tmp_path / "edits"
    half.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base, tokenizer = errata.load_base(str(tmp_path / "base"))
    model = EditModel(base, edit_model("llama", "folio").method.config, tokenizer)
    model.edit(EDITS[:2], check=False)
    model.save_pretrained(folder)
    (tmp_path / "cases.jsonl").write_text(
        json.dumps({"prompt": EDITS[0].prompt, "target": EDITS[0].target}) + "\n"
    )
    opened: list[torch.dtype] = []
    load = errata.load

    def watched(*args: Any) -> EditModel:
        opened.append((found := load(*args)).dtype)
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(errata, "load", watched)
        for words in (
            ["ask", str(folder), "Who?"],
            ["chat", str(folder)],
            ["explain", str(folder), "Who?"],
            ["eval", str(folder), "--cases", str(tmp_path / "cases.jsonl")],
            ["undo", str(folder), EDITS[0].id],
        ):
            done = CliRunner().invoke(app, [*words, "--dtype", "float64"])
            assert done.exit_code == 0, done.output
    assert opened == [torch.float64] * 5
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "base"), "--dtype", "float16"])
    assert "float16" in told.stdout
