"""Edited models, LoRAs and checkpoints as a recipe for MergeKit, which merges whole models.

MergeKit (Goddard et al., "Arcee's MergeKit: A Toolkit for Merging Large Language Models", EMNLP
2024 Industry Track, arXiv 2403.13257) reads checkpoints from disk; errata writes them and the
recipe, and never imports it. `solvers/merging.py` merges the deltas of one run in memory. Of one
base model and deltas from it, both do the same with `linear`, `task_arithmetic` and `ties`, where
all weights are positive and the density is the same count of entries (MergeKit rounds it down).
They differ in two: MergeKit's `slerp` goes along the arc between the models' weights, ours between
what was added to them; and its `dare_ties` draws other entries, and scales what is left to the norm
that it had instead of dividing by the density.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from errata.config import check_choice
from errata.errors import UsageError
from errata.model import EditModel
from errata.storage.cache import fingerprint
from errata.storage.checkpoints import save_checkpoint
from errata.storage.files import write_whole

MERGES = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
"""MergeKit's methods that a recipe is written for."""
DENSITY = 0.5
"""The share of each delta that stays, in a recipe whose method drops some; MergeKit's advice."""
RECIPE, BASE = "recipe.yaml", "base"
"""The recipe, and the folder of the base model."""


def write_recipe(
    model: EditModel, others: Sequence[EditModel | Path], folder: Path, merge: str = "ties"
) -> list[str]:
    """Write checkpoints and a recipe that merges them; MergeKit runs it in that folder.

    Args:
        model: an edited model whose edits are in its weights.
        others: further ones, of the same base model; or folders of checkpoints, or of LoRAs in
            PEFT's format.
        folder: where it goes; made if it is not there. The edited models are unusable then.
        merge: one of `MERGES`.

    Returns:
        The models, as the recipe names them.

    Raises:
        UsageError: too few or too many models, a folder that holds no model, another base model.
        ConfigError: the edits are beside the weights.
    """
    check_choice("--merge", merge, MERGES)
    if not others:
        raise UsageError("a recipe merges two models or more; name others with --with.")
    if merge == "slerp" and len(others) != 1:
        raise UsageError(f"slerp merges two models, not {1 + len(others)}; ties takes any number.")
    bases = [_base_of(each) for each in (model, *others) if isinstance(each, EditModel)]
    if any(base != bases[0] for base in bases):
        raise UsageError(
            "these are edits of several base models: what was added to one cannot be added to "
            "another. Name edits of one base model."
        )
    names = [
        f"model-{place}" if isinstance(each, EditModel) else _named(each)
        for place, each in enumerate([model, *others], start=1)
    ]
    for each in (model, *others):
        if isinstance(each, EditModel):
            each.method.weight_changes()  # refused before anything is written
    with model.disable_edits():
        save_checkpoint(model.base, model.lm.tokenizer, folder / BASE)
    for name, each in zip(names, (model, *others), strict=True):
        if isinstance(each, EditModel):
            save_checkpoint(each.merge_and_unload(), each.lm.tokenizer, folder / name)
    text = recipe(names, merge, str(model.base.dtype).removeprefix("torch."))
    write_whole(folder / RECIPE, text.encode())
    return names


def recipe(names: Sequence[str], merge: str, dtype: str) -> str:
    """Return a recipe as YAML.

    Args:
        names: folders of checkpoints, or `BASE+FOLDER` with a LoRA, as seen from the recipe.
        merge: one of `MERGES`.
        dtype: of the merged weights, such as float32.
    """
    base, parameters = BASE, dict[str, Any](normalize=merge != "task_arithmetic")
    each: dict[str, Any] = {"weight": 1.0}
    if merge in ("ties", "dare_ties"):
        each["density"] = DENSITY
    if merge == "slerp":
        base, parameters, each = names[0], {"t": 0.5}, {}
    content: dict[str, Any] = {"merge_method": merge}
    if merge != "linear":
        content["base_model"] = base
    content["models"] = [{"model": name, "parameters": dict(each)} for name in names]
    content |= {"parameters": parameters, "dtype": dtype}
    return str(yaml.safe_dump(content, sort_keys=False))


def _base_of(model: EditModel) -> str:
    with model.disable_edits():
        return str(fingerprint(model.base))


def _named(source: Path) -> str:
    """Return what a recipe calls a checkpoint or a LoRA."""
    if (source / "adapter_config.json").is_file():
        return f"{BASE}+{source.resolve()}"
    if (source / "config.json").is_file():
        return str(source.resolve())
    raise UsageError(
        f"{source} holds neither edits nor a checkpoint nor a LoRA: neither edit_config.json nor "
        "config.json nor adapter_config.json is in it."
    )
