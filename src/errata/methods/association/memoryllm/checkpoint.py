"""Reads what a released MemoryLLM or M+ checkpoint has beside its base model.

A folder of the published layout (github.com/wangyu-ustc/MemoryLLM) holds safetensors with:

    memory                                (layers, N, hidden)
    bos_embedding                         (layers, 1, hidden)     here `sink`
    new_memory_positional_emb             (1, 1, hidden)          here `mark`
    PATH.base_layer.weight                the base model's own, frozen
    PATH.lora_A.default.weight, lora_B    adapters that write
    PATH.lora_A.decoder_adapter.weight    adapters that read; without them, the same as write
    ltm.LAYER                             (M, hidden), M+: what was dropped
    model.layers.LAYER.self_attn.query_proj.{0,2}.weight, key_proj     M+: the retriever

and a config.json with `num_tokens`, `num_blocks`, `num_ltm_blocks`, `lora_config`. It is opened on
the base model that it was trained on, which is compared with the one in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.association.memoryllm.config import MemoryLlmConfig
from errata.methods.association.memoryllm.pool import Pool
from errata.patches.adapter import PREFIX

WRITER, READER = "default", "decoder_adapter"
"""The published names of the adapters."""
_BASE = ".base_layer.weight"


class Checkpoint:
    """The tensors of a folder by name, read one by one.

    Args:
        folder: config.json and safetensors.

    Raises:
        ConfigError: there is no such folder, or it is no checkpoint of MemoryLLM.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: dict[str, Path] = {}
        try:
            text = (self.folder / "config.json").read_text(encoding="utf-8")
            self.config: dict[str, Any] = dict(json.loads(text))
            for path in sorted(self.folder.glob("*.safetensors")):
                with safe_open(path, "pt") as file:
                    self._files |= dict.fromkeys(file.keys(), path)
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise ConfigError(
                f"checkpoint {str(folder)!r} cannot be read ({error}); give a folder with the "
                "config.json and the safetensors of a released MemoryLLM."
            ) from error
        if "memory" not in self._files:
            raise ConfigError(
                f"checkpoint {str(folder)!r} has no tensor 'memory'; expected a released MemoryLLM."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str, *shape: int | None) -> Tensor:
        """Return a tensor.

        Args:
            name: its name.
            shape: what it must be, if given; None where a dimension may have any size.

        Raises:
            ConfigError: there is none of this name and shape.
        """
        if name not in self:
            raise ConfigError(
                f"checkpoint {str(self.folder)!r} lacks the tensor {name!r}; expected the layout "
                "of a released MemoryLLM."
            )
        with safe_open(self._files[name], "pt") as file:
            found: Tensor = file.get_tensor(name)
        sizes = zip(shape, found.shape, strict=False)
        if shape and (len(shape) != found.dim() or any(a not in (None, b) for a, b in sizes)):
            raise ConfigError(
                f"checkpoint {str(self.folder)!r}: {name!r} is of shape {tuple(found.shape)}; "
                f"expected {shape}."
            )
        return found

    def settings(self) -> dict[str, Any]:
        """Return the settings that a method must have to take it.

        Raises:
            ConfigError: config.json lacks one.
        """
        try:
            blocks, size = self.config["num_blocks"], self.config["num_tokens"]
            recalled = self.config.get("num_ltm_blocks", 0)
            lora = self.config["lora_config"]
            settings = {
                "memory_tokens": (blocks - recalled) * size,
                "new_tokens": size,
                "recalled_tokens": recalled * size,
                "rank": lora["r"],
                "alpha": float(lora["lora_alpha"]),
            }
            if recalled:
                settings["retriever_width"] = self.config["selector_hidden_dim"]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"checkpoint {str(self.folder)!r}: its config.json lacks {error}; expected that of "
                "a released MemoryLLM."
            ) from error
        return settings

    def check(self, lm: LM, config: MemoryLlmConfig) -> None:
        """Check that a base model and settings are those of the checkpoint.

        Raises:
            ConfigError: they are not.
        """
        wanted = self.settings()
        wrong = {name: x for name, x in wanted.items() if getattr(config, name) != x}
        if wrong:
            given = ", ".join(f"{name}={value:g}" for name, value in wrong.items())
            raise ConfigError(f"checkpoint {str(self.folder)!r} is for other settings: {given}.")
        weights = lm.model.state_dict()
        for name in self._files:
            if name.endswith(_BASE):
                path = name.removesuffix(_BASE) + ".weight"
                own = weights.get(path)
                stored = self.tensor(name)
                if own is None or own.shape != stored.shape or not own.equal(stored.to(own)):
                    raise ConfigError(
                        f"checkpoint {str(self.folder)!r} is of another base model: {path} is not "
                        "the same; open the model that it was trained on."
                    )

    def parameters(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters of a network, by its names, fp32.

        Args:
            wanted: the network's own; those of modules that the checkpoint does not adapt stay.

        Raises:
            ConfigError: one is missing.
        """
        found = {name: parameter.detach().cpu() for name, parameter in wanted.items()}
        found["sink"] = self.tensor("bos_embedding", *found["sink"].shape)
        found["mark"] = self.tensor("new_memory_positional_emb", 1, 1, len(found["mark"]))[0, 0]
        two = any(f".{READER}." in name for name in self._files)
        for name in wanted:
            kind, _, rest = name.partition(".")
            if kind in ("writer", "reader"):
                path, _, which = rest.removeprefix(PREFIX).rpartition(".lora_")
                adapter = READER if two and kind == "reader" else WRITER
                stored = f"{path}.lora_{which[0]}.{adapter}.weight"
                if f"{path}{_BASE}" in self:
                    found[name] = self.tensor(stored, *wanted[name].shape)
        if "retriever.query_in" in wanted:
            found |= self._retriever(wanted)
        return {name: tensor.float() for name, tensor in found.items()}

    def _retriever(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the retriever's maps; the norm's weights are taken into those of the input."""
        maps: dict[str, list[Tensor]] = {}
        layers, inside, hidden = wanted["retriever.query_in"].shape
        for layer in range(layers):
            norm = self.tensor(f"model.layers.{layer}.input_layernorm.weight", hidden).float()
            for kind in ("query", "key"):
                at = f"model.layers.{layer}.self_attn.{kind}_proj"
                inner = self.tensor(f"{at}.0.weight", inside, hidden).float() * norm
                maps.setdefault(f"retriever.{kind}_in", []).append(inner)
                outer = self.tensor(f"{at}.2.weight", inside // 2, inside).float()
                maps.setdefault(f"retriever.{kind}_out", []).append(outer)
        return {name: torch.stack(each) for name, each in maps.items()}

    def pool(self, layers: int, size: int, hidden: int) -> Pool:
        """Return the memory, and what M+ has in its store: of each layer the latest so many.

        Args:
            layers, size, hidden: the shape that the memory must have.

        Raises:
            ConfigError: a tensor is missing, or of another shape.
        """
        vectors = self.tensor("memory", layers, size, hidden).float()
        if not self.config.get("num_ltm_blocks"):
            return Pool(vectors, vectors[:, :0].clone())
        names = [f"ltm.{layer}" for layer in range(layers)]
        dropped = [self.tensor(name, None, hidden).float() for name in names]
        least = min(len(each) for each in dropped)
        return Pool(vectors, torch.stack([each[len(each) - least :] for each in dropped]))
