"""`Architecture`: the blocks of a model, the value matrix W_out of each, and the output head.

This is the only file that tells model families apart. It lists some in `FAMILIES` and infers others
from their structure alone, so that a family nobody has listed works, too. It does not run a model;
`weights.py` reads and changes the matrices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from errata.errors import ArchitectureError, ConfigError


class Places(NamedTuple):
    """Three dotted paths: the block list, W_out inside one block, and the output head."""

    blocks: str
    w_out: str
    head: str


_LLAMA_LIKE = Places("model.layers", "mlp.down_proj", "lm_head")

FAMILIES: Mapping[str, Places] = MappingProxyType(
    {
        "llama": _LLAMA_LIKE,
        "mistral": _LLAMA_LIKE,
        "qwen2": _LLAMA_LIKE,
        "qwen3": _LLAMA_LIKE,
        "gemma": _LLAMA_LIKE,
        "gemma2": _LLAMA_LIKE,
        "gemma3_text": _LLAMA_LIKE,
        "gemma3": Places("model.language_model.layers", "mlp.down_proj", "lm_head"),
        "phi": Places("model.layers", "mlp.fc2", "lm_head"),
        "phi3": _LLAMA_LIKE,
        "olmo": _LLAMA_LIKE,
        "olmo2": _LLAMA_LIKE,
        "stablelm": _LLAMA_LIKE,
        "cohere": _LLAMA_LIKE,
        "granite": _LLAMA_LIKE,
        "starcoder2": Places("model.layers", "mlp.c_proj", "lm_head"),
        "gpt2": Places("transformer.h", "mlp.c_proj", "lm_head"),
        "gpt_neo": Places("transformer.h", "mlp.c_proj", "lm_head"),
        "gptj": Places("transformer.h", "mlp.fc_out", "lm_head"),
        "gpt_neox": Places("gpt_neox.layers", "mlp.dense_4h_to_h", "lm_head"),
        "opt": Places("model.decoder.layers", "fc2", "lm_head"),
        "bloom": Places("transformer.h", "mlp.dense_4h_to_h", "lm_head"),
        "falcon": Places("transformer.h", "mlp.dense_4h_to_h", "lm_head"),
        "mpt": Places("transformer.blocks", "ffn.down_proj", "lm_head"),
    }
)

# Number of blocks -> the layer WISE's paper edits: LLaMA-2-7B and Mistral-7B have 32, GPT-J-6B 28.
_PUBLISHED_LAYERS: Mapping[int, int] = MappingProxyType({32: 27, 28: 21})

# A module that contains linear modules of attention.
_ATTENTION = re.compile(r"(attn|attention)[^.]*\.", re.IGNORECASE)
# Usual names of the last matrix of a feed-forward network; used only where its shape is ambiguous.
_DOWNWARD = re.compile("down|fc2|fc_out|ff_out|c_proj|4h_to_h|linear2|^w2$|^wo$", re.IGNORECASE)


@dataclass(frozen=True)
class Architecture:
    """The modules of one model that editing needs, and their sizes.

    Attributes:
        model_type: the family, as the model's configuration names it.
        n_layers: number of blocks.
        hidden_size: width of the hidden states.
        blocks, head: dotted paths of the block list and of the output head.
        w_out: dotted path of the value matrix inside a block.
        d_in, d_out: sizes of W_out, (d_out, d_in); d_out is the hidden size.
    """

    model_type: str
    n_layers: int
    hidden_size: int
    blocks: str
    w_out: str
    head: str
    d_in: int
    d_out: int

    def block(self, model: nn.Module, layer: int) -> nn.Module:
        """Return the block numbered `layer`, from 0.

        Raises:
            ConfigError: there is no such layer.
        """
        return model.get_submodule(f"{self.blocks}.{self._checked(layer)}")

    def value_module(self, model: nn.Module, layer: int) -> nn.Module:
        """Return the module of `layer`'s W_out: keys (..., d_in) in, values (..., d_out) out.

        Raises:
            ConfigError: there is no such layer.
        """
        return model.get_submodule(self.value_path(layer))

    def value_path(self, layer: int) -> str:
        """Return the dotted path of `value_module`.

        Raises:
            ConfigError: there is no such layer.
        """
        return f"{self.blocks}.{self._checked(layer)}.{self.w_out}"

    def linear_paths(self, model: nn.Module, layer: int) -> list[str]:
        """Return the dotted paths of all linear modules in `layer`, of attention and feed-forward.

        Raises:
            ConfigError: there is no such layer.
        """
        block, path = self.block(model, layer), f"{self.blocks}.{layer}"
        return [f"{path}.{name}" for name, each in block.named_modules() if _features(each)]

    def attention_paths(self, model: nn.Module, layer: int) -> list[str]:
        """Return those of `linear_paths` that are of attention."""
        return [path for path in self.linear_paths(model, layer) if _ATTENTION.search(path)]

    def body_module(self, model: nn.Module) -> nn.Module:
        """Return the model without its head; its output (..., hidden) is the head's input."""
        return model.get_submodule(self.blocks.rpartition(".")[0])

    def head_module(self, model: nn.Module) -> nn.Module:
        """Return the output head: hidden states (..., hidden) in, logits (..., vocabulary) out."""
        return model.get_submodule(self.head)

    def default_layer(self) -> int:
        """Return the layer that is edited by default: a late one, with layers above it.

        It is the choice of WISE's paper (arXiv 2405.14768) at the depths studied there (27 of 32,
        21 of 28), elsewhere four fifths of the way up; in a model of three or more layers never the
        first or the last.
        """
        layer = _PUBLISHED_LAYERS.get(self.n_layers, self.n_layers * 4 // 5)
        return max(0, min(max(1, layer), self.n_layers - 2))

    def _checked(self, layer: int) -> int:
        if not 0 <= layer < self.n_layers:
            raise ConfigError(
                f"no layer {layer}: this {self.model_type} has 0 to {self.n_layers - 1}."
            )
        return layer


def architecture_of(model: nn.Module) -> Architecture:
    """Return the architecture of a model: from `FAMILIES` if its paths exist, else inferred.

    Raises:
        ArchitectureError: the model has no value matrix that can be edited.
    """
    search = _Search.of(model)
    places = FAMILIES.get(search.model_type)
    if places is None or not search.has(places):
        return infer_architecture(model)
    return search.architecture(places)


def infer_architecture(model: nn.Module) -> Architecture:
    """Infer the architecture of a model from shapes, order, and which modules are attention.

    Raises:
        ArchitectureError: nothing fits, or more than one thing does.
    """
    search = _Search.of(model)
    blocks, w_out = search.block_list()
    return search.architecture(Places(blocks, w_out, search.head()))


@dataclass(frozen=True)
class _Search:
    """A search for the blocks, value matrices and head of one model."""

    model: nn.Module
    model_type: str
    n_layers: int
    hidden_size: int

    @classmethod
    def of(cls, model: nn.Module) -> _Search:
        config = getattr(model, "config", None)
        get_text_config = getattr(config, "get_text_config", None)
        text = get_text_config() if callable(get_text_config) else config
        kind = str(getattr(config, "model_type", type(model).__name__))
        n_layers = getattr(text, "num_hidden_layers", None)
        hidden = getattr(text, "hidden_size", None)
        if not isinstance(n_layers, int) or not isinstance(hidden, int):
            raise ArchitectureError(
                f"{kind}: looked for num_hidden_layers and hidden_size in model.config; "
                f"found {n_layers!r} and {hidden!r}. "
                "Load the model with AutoModelForCausalLM.from_pretrained."
            )
        search = cls(model, kind, n_layers, hidden)
        if getattr(config, "is_encoder_decoder", False):
            raise search.error("an encoder beside the decoder")
        return search

    def error(self, found: str) -> ArchitectureError:
        return ArchitectureError(
            f"{self.model_type}: looked for a list of {self.n_layers} blocks, each with attention "
            f"and one feed-forward value matrix of shape {self.hidden_size} x FFN width; found "
            f"{found}. Use a dense decoder-only model loaded with AutoModelForCausalLM; "
            "if it is one, it wants a row in FAMILIES."
        )

    def has(self, places: Places) -> bool:
        """Whether the paths of a row of `FAMILIES` exist in this model."""
        names = {name for name, _ in self.model.named_modules(remove_duplicate=False)}
        return {places.blocks, f"{places.blocks}.0.{places.w_out}", places.head} <= names

    def architecture(self, places: Places) -> Architecture:
        """The architecture with these paths, if W_out has one shape in all blocks."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        paths = [f"{places.blocks}.{layer}.{places.w_out}" for layer in range(self.n_layers)]
        shapes = {path: _features(modules[path]) if path in modules else None for path in paths}
        d_in, d_out = shapes[paths[0]] or (0, 0)
        for path, shape in shapes.items():
            if shape != (d_in, self.hidden_size):
                raise self.error(f"{path} with (in, out) = {shape}")
        return Architecture(
            self.model_type, self.n_layers, self.hidden_size, *places, d_in=d_in, d_out=d_out
        )

    def block_list(self) -> tuple[str, str]:
        """(path of the block list, path of W_out inside a block)."""
        lists = {path: m for path, m in self.model.named_modules() if isinstance(m, nn.ModuleList)}
        fitting, misfits = set[tuple[str, str]](), list[ArchitectureError]()
        for name, blocks in lists.items():
            if len(blocks) == self.n_layers:
                try:
                    paths = {self.value_in(f"{name}.{i}", block) for i, block in enumerate(blocks)}
                    fitting |= {(name, path) for path in paths}
                except ArchitectureError as misfit:
                    misfits.append(misfit)
        if len(fitting) == 1:
            return fitting.pop()
        if fitting:
            candidates = sorted(f"{name}.*.{path}" for name, path in fitting)
            raise self.error(f"several: {', '.join(candidates)}")
        if misfits:
            raise misfits[0]
        lengths = ", ".join(f"{name} of length {len(m)}" for name, m in lists.items())
        raise self.error(f"no list of that length (module lists: {lengths or 'none'})")

    def value_in(self, name: str, block: nn.Module) -> str:
        """The path of W_out inside one block, found by shape, else by name, else by order."""
        if any("expert" in path.lower() for path, _ in block.named_modules()):
            raise self.error(f"a mixture of experts in {name}")
        linears = {
            path: size for path, module in block.named_modules() if (size := _features(module))
        }
        outside = {path: size for path, size in linears.items() if not _ATTENTION.search(path)}
        sizes = ", ".join(f"{path} {size[0]}->{size[1]}" for path, size in outside.items())
        listing = sizes or "nothing"
        if len(outside) == len(linears):
            raise self.error(
                f"no attention in {name}, as in a state-space model (linear: {listing})"
            )
        outward: list[str] = [path for path, size in outside.items() if size[1] == self.hidden_size]
        narrowing = [path for path in outward if outside[path][0] != self.hidden_size]
        named = [path for path in narrowing or outward if _DOWNWARD.search(path.rpartition(".")[2])]
        in_order = outward[1:] if len(outward) == 2 and not narrowing and not named else []
        for candidates in (narrowing, named, in_order):
            if len(candidates) == 1:
                return candidates[0]
        raise self.error(
            f"{len(narrowing or outward)} candidates in {name} (outside attention: {listing})"
        )

    def head(self) -> str:
        """The path of the output head, as transformers' `get_output_embeddings` gives it."""
        get = getattr(self.model, "get_output_embeddings", None)
        head = get() if callable(get) else None
        for path, module in self.model.named_modules():
            if module is head:
                return str(path)
        raise self.error("the blocks, but no output head")


def _features(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear module, quantised ones included; None for any other module."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (d_in, d_out) if isinstance(d_in, int) and isinstance(d_out, int) else None
