"""`Adapters`: modules in the place of others, with parameters of their own around a frozen one.
They decide nothing.

Taken off, the original modules stand where they stood: nothing of them was ever changed. Low-rank
ones are PEFT's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.weights import is_transposed, read_weight
from errata.patches.base import Patch
from errata.storage import state

NAME = "default"
"""What PEFT calls an adapter that nobody named."""
PREFIX = "base_model.model."
"""What PEFT writes before a module's path."""


class Adapters(Patch):
    """Modules put in the place of others.

    Args:
        modules: by the full dotted name of what they replace, see `Architecture.value_path`; each
            holds what it replaces.
        parameters: what may be taught, by the name it is saved under.
    """

    def __init__(self, modules: Mapping[str, nn.Module], parameters: Mapping[str, Tensor]) -> None:
        self.modules = dict(modules)
        self.parameters = dict(parameters)
        self._before: dict[str, nn.Module] = {}

    def state(self) -> dict[str, Tensor]:
        """The parameters by name, copied to the CPU."""
        return {
            name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the parameters that `state` gave.

        Raises:
            KeyError: one is missing.
            ValueError: one is of another shape.
        """
        load_into(self.parameters, tensors)

    def _attach(self, lm: LM) -> None:
        for path, module in self.modules.items():
            self._before[path] = lm.model.get_submodule(path)
            put(lm.model, path, module)

    def _detach(self, lm: LM) -> None:
        for path, module in self._before.items():
            put(lm.model, path, module)
        self._before = {}


class Bottleneck(nn.Module):
    """h + W_up s(W_down h + b_down) + b_up on the output h of a module; the module alone as long as
    W_up and b_up are 0.

    Args:
        base: the module.
        hidden: width of h.
        width: width of the bottleneck.
        activation: s, by its name in transformers.
        generator: W_down is drawn with it, from N(0, .02).

    Reference: arXiv 1902.00751; after the feed-forward network alone, arXiv 2005.00247.
    """

    def __init__(
        self, base: nn.Module, hidden: int, width: int, activation: str, generator: torch.Generator
    ) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        self.base = base
        device = read_weight(base).device
        self.down = nn.Parameter(
            (torch.randn(width, hidden, generator=generator) * 0.02).to(device), requires_grad=False
        )
        self.down_bias = nn.Parameter(torch.zeros(width, device=device), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(hidden, width, device=device), requires_grad=False)
        self.up_bias = nn.Parameter(torch.zeros(hidden, device=device), requires_grad=False)
        self.activation: nn.Module = ACT2FN[activation]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """(..., hidden), in the type that the module answers in."""
        h: Tensor = self.base(*args, **kwargs)
        inner = self.activation(
            nn.functional.linear(h.to(self.down.dtype), self.down, self.down_bias)
        )
        return h + nn.functional.linear(inner, self.up, self.up_bias).to(h.dtype)


def bottlenecks(lm: LM, paths: Iterable[str], width: int, activation: str, seed: int) -> Adapters:
    """A bottleneck behind each of the modules so named."""
    draw = torch.Generator().manual_seed(seed)
    hidden = lm.architecture.d_out
    modules = {
        path: Bottleneck(lm.model.get_submodule(path), hidden, width, activation, draw)
        for path in paths
    }
    names = ("down", "down_bias", "up", "up_bias")
    parameters = {
        f"{path}.{name}": getattr(module, name)
        for path, module in modules.items()
        for name in names
    }
    return Adapters(modules, parameters)


def low_rank(
    lm: LM, paths: Iterable[str], rank: int, alpha: float, kind: str, seed: int
) -> Adapters:
    """PEFT's LoRA on each of the modules so named: W k + b + (alpha / r) B A k, B = 0 to begin
    with.

    The parameters are fp32, whatever the model is, under the names that PEFT saves them with.

    Args:
        kind: `lora`; `rslora`, alpha over the root of r; `dora`, the direction of W + B A with a
            length of its own.

    Raises:
        ConfigError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            "LoRA is PEFT's, and PEFT is not installed: pip install 'errata[peft]'."
        ) from error
    originals = {path: lm.model.get_submodule(path) for path in paths}
    transposed = {is_transposed(module) for module in originals.values()}
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(originals),
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
        fan_in_fan_out=transposed == {True},
    )
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, lm.model, NAME)
    modules = {}
    parameters = {}
    for path, original in originals.items():
        modules[path] = lm.model.get_submodule(path).eval()
        put(lm.model, path, original)
        for name, parameter in modules[path].named_parameters():
            if not name.startswith("base_layer."):
                parameter.requires_grad_(False)
                parameter.data = parameter.data.float()
                parameters[f"{PREFIX}{path}.{name}".replace(f".{NAME}.", ".")] = parameter
    del lm.model.peft_config
    return Adapters(modules, parameters)


@torch.no_grad()
def weight_changes(adapters: Adapters) -> dict[str, Tensor]:
    """What low-rank adapters add to the weights, (d_out, d_in) by path."""
    changes = {}
    for path, module in adapters.modules.items():
        change: Tensor = module.get_delta_weight(NAME)  # type: ignore[operator]
        changes[path] = change.T.contiguous() if is_transposed(module.get_base_layer()) else change  # type: ignore[operator]
    return changes


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Let `module` be what the dotted name says."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


@torch.no_grad()
def load_into(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors of the same names and shapes into parameters.

    Raises:
        KeyError: one is missing.
        ValueError: one is of another shape.
    """
    state.copy_into(parameters, tensors)
