"""Quantized base models: methods that write into weights refuse in a line, the others work.

Two stand-ins are stored as the libraries store weights: as whole numbers (bitsandbytes), or as a
kind of tensor that looks like floats (torchao). The libraries themselves are tried where they are.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from edited import EDITS, PROMPTS, SMALL, logits_of
from families import tiny_model, tiny_tokenizer
from grid import grid, patch_kind
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

import errata
from errata import EditModel
from errata.errors import ArchitectureError
from errata.lm.weights import read_weight
from errata.storage.identity import identity_of, record_source

WRITERS = ("ft", "rome", "memit", "ultraedit", "mend")
BESIDE = ("wise", "folio", "grace", "defer", "memoir", "lora", "adapter", "bitfit", "rag")
CELLS = [("numbers", method) for method in BESIDE]
CELLS += [("tensor", method) for method in ("wise", "grace", "lora")]


class Int8Linear(nn.Linear):
    """A linear module whose weight is whole numbers, and a scale for each row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        numbers = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(numbers, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight.to(states.dtype) * self.scale)


class Packed(Tensor):
    """A tensor of floats that is stored as whole numbers and a scale."""

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers: Tensor, scale: Tensor) -> None:
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], *_: Any) -> Any:
        return cls(parts["numbers"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scale)
        plain = tree_map(lambda x: x.numbers * x.scale if isinstance(x, cls) else x, args)
        return func(*plain, **(kwargs or {}))


def as_tensor(linear: nn.Linear) -> nn.Linear:
    numbers = Int8Linear(linear)
    linear.weight = nn.Parameter(Packed(numbers.weight.data, numbers.scale), requires_grad=False)
    return linear


KINDS = {"numbers": Int8Linear, "tensor": as_tensor}


def quantized(kind: str) -> PreTrainedModel:
    """A tiny model whose blocks are quantized, as libraries do it: the head stays."""
    base = tiny_model("llama")
    for name, module in list(base.named_modules()):
        if type(module) is nn.Linear and not name.endswith("lm_head"):
            base.set_submodule(name, KINDS[kind](module))
    return base


def config_of(method: str) -> Any:
    config = errata.method_class(method).config_class
    return config.from_dict({k: v for k, v in SMALL.items() if k in config.__dataclass_fields__})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", WRITERS)
def test_a_method_that_writes_into_weights_refuses(method: str, kind: str) -> None:
    with pytest.raises(ArchitectureError, match="plain floats") as error:
        EditModel(quantized(kind), config_of(method), tiny_tokenizer())
    assert "\n" not in str(error.value) and "without quantisation" in str(error.value)


@grid("kind method", CELLS, lambda kind, method: {kind, patch_kind(method)})
def test_a_method_beside_the_weights_works(kind: str, method: str, tmp_path: Path) -> None:
    model = EditModel(quantized(kind), config_of(method), tiny_tokenizer())
    before = logits_of(model, model.lm)
    model.edit(EDITS[:2], check=False)
    edited = logits_of(model, model.lm)
    assert edited.isfinite().all() and not torch.equal(edited, before)
    model.save_pretrained(tmp_path)
    loaded = EditModel.from_pretrained(quantized(kind), tmp_path, tiny_tokenizer())
    assert torch.equal(logits_of(loaded, loaded.lm), edited)
    model.undo(*(edit.id for edit in EDITS[:2]))
    assert torch.equal(logits_of(model, model.lm), before)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_stored_counts_for_the_identity(kind: str, tmp_path: Path) -> None:
    base, other = quantized(kind), quantized(kind)
    record_source(base, tmp_path)
    assert identity_of(base, tiny_tokenizer()) == identity_of(other, tiny_tokenizer())
    module = other.get_submodule("model.layers.2.mlp.down_proj")
    numbers = getattr(module.weight, "numbers", module.weight)
    numbers[0, 3] += 1
    assert (
        identity_of(base, tiny_tokenizer()).weights != identity_of(other, tiny_tokenizer()).weights
    )
    with pytest.raises(ArchitectureError):
        read_weight(module)


@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_a_folder_that_a_library_quantized(library: str, tmp_path: Path) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    import transformers

    tiny_model("llama").save_pretrained(tmp_path / "plain")
    settings = (
        transformers.BitsAndBytesConfig(load_in_8bit=True)
        if library == "bitsandbytes"
        else transformers.TorchAoConfig("int8_weight_only")
    )
    transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=settings
    ).save_pretrained(tmp_path / "base", safe_serialization=library == "bitsandbytes")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base, tokenizer = errata.load_base(str(tmp_path / "base"))
    with pytest.raises(ArchitectureError, match="plain floats"):
        EditModel(base, config_of("ft"), tokenizer)
    model = EditModel(base, config_of("grace"), tokenizer)
    model.edit(EDITS[:2], check=False)
    model.save_pretrained(tmp_path / "edits")
    assert errata.load(tmp_path / "edits").ask(PROMPTS) == model.ask(PROMPTS)
