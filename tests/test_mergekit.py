"""Recipes for MergeKit: it merges edited models as `merging.py` does, where both mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from edited import EDITS, edit_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from errata.cli import app
from errata.engines.mergekit import DENSITY, MERGES, recipe, write_recipe
from errata.engines.weights import export_lora
from errata.errors import ConfigError, UsageError
from errata.solvers.merging import merge


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models, each with other edits in its weights, and the base model they are of."""
    root = tmp_path_factory.mktemp("edited")
    base = root / "base"
    for place, edits in enumerate((EDITS[:2], EDITS[2:4])):
        model = edit_model("llama", "ft", edits, lr=0.01, steps=6)
        if not place:
            with model.disable_edits():
                model.base.save_pretrained(base)
                model.tokenizer.save_pretrained(base)
        model.lm.model.config._name_or_path = str(base)
        model.save_pretrained(root / f"edits-{place}")
    return [root / "edits-0", root / "edits-1"]


def exported(folders: list[Path], out: Path, *more: str) -> Any:
    first, *others = map(str, folders)
    words = [word for other in others for word in ("--with", other)]
    return CliRunner().invoke(
        app, ["export", first, "--to", "mergekit", "--out", str(out), *words, *more]
    )


def merged(out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What MergeKit makes of a recipe."""
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    monkeypatch.chdir(out)
    options = MergeOptions(
        device="cpu", write_model_card=False, lora_merge_cache=str(out / "loras")
    )
    config = MergeConfiguration.model_validate(yaml.safe_load((out / "recipe.yaml").read_text()))
    run_merge(config, str(out / "merged"), options)
    AutoModelForCausalLM.from_pretrained(out / "merged")
    return load_file(out / "merged" / "model.safetensors")


def deltas_of(out: Path) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    base = load_file(out / "base" / "model.safetensors")
    edited = [load_file(out / f"model-{place}" / "model.safetensors") for place in (1, 2)]
    return base, [{name: each[name] - base[name] for name in base} for each in edited]


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "method",
    [pytest.param("linear", marks=LONG), pytest.param("task_arithmetic", marks=LONG), "ties"],
)
def test_it_merges_what_merging_does(
    method: str, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = exported(folders, tmp_path / "out", "--merge", method)
    assert result.exit_code == 0, result.output
    assert "mergekit-yaml recipe.yaml merged" in result.output
    base, deltas = deltas_of(tmp_path / "out")
    found = merged(tmp_path / "out", monkeypatch)
    changed = 0
    for name, before in base.items():
        parts = [delta[name] for delta in deltas]
        density = DENSITY if method == "ties" else 1.0
        # an even number of entries, so that both keep the same count of them
        wanted = before + merge(parts, method, density=density)
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-5)
        changed += int(not torch.equal(found[name], before))
    assert changed


@LONG
def test_slerp_goes_along_another_arc_than_ours(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the weights there, between what was added here: documented, not the same."""
    assert exported(folders, tmp_path / "out", "--merge", "slerp").exit_code == 0
    base, deltas = deltas_of(tmp_path / "out")
    found = merged(tmp_path / "out", monkeypatch)
    apart = max(
        float((found[name] - base[name] - merge([d[name] for d in deltas], "slerp")).abs().max())
        for name in base
        if any(bool(d[name].any()) for d in deltas)
    )
    assert apart > 1e-4


@LONG
def test_a_lora_and_a_checkpoint_are_named_as_they_are(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = edit_model("llama", "ft", EDITS[4:5], lr=0.01)
    export_lora(model, tmp_path / "lora")
    base = folders[0].parent / "base"
    result = exported([folders[0], tmp_path / "lora", base], tmp_path / "out")
    assert "--lora-merge-cache loras" in result.output, result.output
    names = [
        each["model"]
        for each in yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["models"]
    ]
    assert names == ["model-1", f"base+{tmp_path / 'lora'}", str(base)]
    assert merged(tmp_path / "out", monkeypatch)


@pytest.mark.parametrize("method", MERGES)
def test_a_recipe_is_what_mergekit_reads(method: str) -> None:
    config = pytest.importorskip("mergekit.config")
    read = config.MergeConfiguration.model_validate(
        yaml.safe_load(recipe(["one", "base+two"], method, "float32"))
    )
    assert read.merge_method == method and len(read.models) == 2


def test_what_cannot_be_merged_is_refused_in_a_line(folders: list[Path], tmp_path: Path) -> None:
    def refused(names: list[Path], *more: str) -> str:
        result = exported(names, tmp_path / "out", *more)
        assert result.exit_code and not (tmp_path / "out").exists()
        return " ".join(result.output.split())

    assert "a recipe merges two models or more" in refused(folders[:1])
    assert "slerp merges two models, not 3" in refused([*folders, folders[1]], "--merge", "slerp")
    assert "--merge is 'mean'" in refused(folders, "--merge", "mean")
    assert "holds neither edits nor a checkpoint nor a LoRA" in refused([folders[0], tmp_path])
    words = ["export", str(folders[0]), "--to", "peft", "--out", str(tmp_path / "x"), "--with", "y"]
    assert "--with and --merge are of --to mergekit" in CliRunner().invoke(app, words).output


def test_edits_beside_the_weights_and_of_another_model_are_refused(tmp_path: Path) -> None:
    one, other = edit_model("llama", "ft", EDITS[:1]), edit_model("gpt2", "ft", EDITS[:1])
    with pytest.raises(UsageError, match="edits of several base models"):
        write_recipe(one, [other], tmp_path / "out")
    beside = edit_model("llama", "grace", EDITS[:1])
    with pytest.raises(ConfigError, match="cannot be merged into"):
        write_recipe(one, [beside], tmp_path / "out")
