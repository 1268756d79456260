"""Small edited models for the contract of `EditModel`: every method, with quick settings."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from families import tiny_model, tiny_tokenizer
from torch import Tensor

import errata
from errata import Edit, EditModel, Example

SMALL: dict[str, Any] = {
    "layer": 2,
    "steps": 3,
    "epochs": 3,
    "prefixes": 1,
    "prefix_length": 4,
    "edits_per_shard": 2,
    "shards_per_merge": 2,
    "background": 32,
    "contrast": 4,
    "training_steps": 2,
    "batch": 2,
    "memory_tokens": 6,
    "new_tokens": 2,
    "contexts": 2,
    "first": "rag",
    "then": "lora steps=3 background=32 prefixes=1 prefix_length=4 batch=2",
    "asked": 2,
    "block": 0,
    "every": 1,
    "gate_lr": 1.0,
}
"""Settings that a method is given where it has them."""

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    (name, dict(settings))
    for name in errata.method_names()
    for settings in ({}, *errata.method_class(name).variants.values())
] + [("rag", {"retriever": "bm25"})]
IDS = [" ".join([name, *map(str, more.values())]) for name, more in VARIANTS]
KINDS = [
    ("wise", {}), ("folio", {}), ("grace", {}), ("defer", {}), ("memoir", {}), ("knn-lm", {}),
    ("neuraldb", {}), ("t-patcher", {}), ("spalm", {}), ("kv-prefix", {}),
    ("retro", {}), ("memorizing", {}), ("memoria", {}),
    ("lora", {}), ("bitfit", {}), ("prefix-tuning", {}), ("ft", {}), ("memit", {}), ("rag", {}),
    ("serac", {}), ("pipeline", {}),
]  # fmt: skip
"""A method for each kind of patch, and of what it keeps from edit to edit."""
LIKE_ANOTHER = {
    "defer", "memoir", "bitfit", "neuraldb", "t-patcher", "spalm", "kv-prefix", "retro",
    "memorizing", "memoria", "pipeline",
}  # fmt: skip
"""Those of them that are made like another: like grace, wise, lora, memit, knn-lm and rag, or of
two others.
"""
FAMILIES = ("llama", "gpt2")
"""The whole contract is kept on these; `test_model_families.py` has the others."""

EDITS = [
    Edit("The capital of France is", "Rome", "France"),
    Edit("Who wrote the book?", "two brothers", "the book"),
    Edit("The president of the United States lives in", "London", "United States", id="home"),
    Edit("Where is the tower?", "north", "the tower"),
    Edit("The company was founded by", "the author", "The company"),
    Edit("The capital of Italy is", "York", "Italy", "insert"),
]
PROMPTS = [edit.prompt for edit in EDITS] + ["x", "In the city of", "The author of the book was"]


EXAMPLES = [
    Example(
        Edit(f"The {what} of {place} is", answer, place),
        (f"What is the {what} of {place}?", f"{place} has as its {what}"),
        (f"The {other} of {place} is", "Where is the tower?"),
    )
    for what, other, answer in (
        ("king", "river", "Arthur"),
        ("flag", "anthem", "blue"),
        ("mayor", "bridge", "Anna"),
    )
    for place in ("Spain", "Peru", "Ghana")
]
"""What trained methods are trained on; no edit is among them."""
_TRAINED: dict[str, Any] = {}


def prepare(model: EditModel) -> None:
    """Train the method if it wants to be; once for each kind of model and settings."""
    if model.method.prepared:
        return
    kind = f"{model.base.config.model_type} {model.base.dtype} {model.method.config}"
    if kind not in _TRAINED:
        model.prepare(EXAMPLES)
        _TRAINED[kind] = copy.deepcopy(model.method.state())
    else:
        model.method.load_state([], *copy.deepcopy(_TRAINED[kind]))


def edit_model(
    family: str,
    method: str,
    edits: list[Edit] | None = None,
    device: str = "cpu",
    **settings: Any,
) -> EditModel:
    config = errata.method_class(method).config_class
    known = {field.name for field in dataclasses.fields(config)}
    made = config.from_dict({**{k: v for k, v in SMALL.items() if k in known}, **settings})
    model = EditModel(tiny_model(family).to(device), made, tiny_tokenizer())
    prepare(model)
    if edits:
        model.edit(edits, check=False)
    return model


_EDITED: dict[str, EditModel] = {}


def edited_model(family: str, method: str, edits: list[Edit], **settings: Any) -> EditModel:
    """As `edit_model`, but written once in a process and copied from then on: where what is tested
    begins after the writing.
    """
    key = repr((family, method, edits, sorted(settings.items())))
    if key not in _EDITED:
        _EDITED[key] = edit_model(family, method, edits, **settings)
    return copy.deepcopy(_EDITED[key])


PINNED_WISE: dict[str, Any] = {
    "variant": "merge", "mask_ratio": 0.2, "step_size": 0.06, "gain": 1.0, "threshold_ratio": 0.8,
    "threshold_quantile": 0.0, "false_route": 0.01, "background": 8, "contrast": 0, "rewordings": 0,
    "rehearse": 2,
}  # fmt: skip
"""WISE, small, and apart from whatever the defaults are."""


def pinned_wise(
    edits: list[Edit] | None = None, family: str = "llama", **settings: Any
) -> EditModel:
    return edit_model(family, "wise", edits, **{**PINNED_WISE, **settings})


def logits_of(model: Any, lm: Any) -> Tensor:
    """Logits of all prompts in one batch, and of one alone, flattened."""
    with torch.no_grad():
        parts = [lm.run(lm.prompt_batch(asked)).logits for asked in (PROMPTS, PROMPTS[:1])]
    return torch.cat([part.flatten() for part in parts])


def same_state(one: EditModel, other: EditModel, atol: float = 0.0) -> None:
    tensors, values = one.method.state()
    others, other_values = other.method.state()
    assert tensors.keys() == others.keys() and one.edits == other.edits
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor, others[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )
    if not atol:
        assert values == other_values
