"""`Adapters`: modules with trainable parameters, each around a frozen module that it replaces.

Every input sees them; nothing is routed. The originals are put back unchanged when the patch comes
off. Low-rank adapters are PEFT's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.weights import is_transposed, weight_device
from errata.patches.base import TrainablePatch
from errata.patches.shared_rows import kept_outputs

NAME = "default"
"""PEFT's name of an adapter that was given none."""
PREFIX = "base_model.model."
"""PEFT's prefix of the paths of modules."""


class Adapters(TrainablePatch):
    """Replace modules of the model by others, which contain them.

    Args:
        modules: by the full dotted name of the module that each replaces, see
            `Architecture.value_path`.
        parameters: the trainable ones, by the names they are saved under.
    """

    shares_rows = True

    def __init__(self, modules: Mapping[str, nn.Module], parameters: Mapping[str, Tensor]) -> None:
        self.modules = dict(modules)
        self._parameters = dict(parameters)
        self._originals: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters, by the names they are saved under."""
        return self._parameters

    def _attach(self, lm: LM) -> None:
        for path, module in self.modules.items():
            self._originals[path] = lm.model.get_submodule(path)
            replace_module(lm.model, path, module)
        if self.asked is not None:
            self._handles = kept_outputs(self.modules, self._originals, self.rows)

    def _detach(self, lm: LM) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for path, module in self._originals.items():
            replace_module(lm.model, path, module)
        self._originals = {}


class Bottleneck(nn.Module):
    """h + W_up s(W_down h + b_down) + b_up, where h is the output of a module.

    W_up, b_down and b_up are 0 at first: the output is then h.

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
        device = weight_device(base)
        drawn = (torch.randn(width, hidden, generator=generator) * 0.02).to(device)
        self.down = nn.Parameter(drawn, requires_grad=False)
        self.down_bias = nn.Parameter(torch.zeros(width, device=device), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(hidden, width, device=device), requires_grad=False)
        self.up_bias = nn.Parameter(torch.zeros(hidden, device=device), requires_grad=False)
        self.activation: nn.Module = ACT2FN[activation]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return (..., hidden), in the dtype of the module's output; arguments are the module's."""
        h: Tensor = self.base(*args, **kwargs)
        inner = nn.functional.linear(h.to(self.down.dtype), self.down, self.down_bias)
        added = nn.functional.linear(self.activation(inner), self.up, self.up_bias)
        return h + added.to(h.dtype)


def bottlenecks(lm: LM, paths: Iterable[str], width: int, activation: str, seed: int) -> Adapters:
    """Make a bottleneck for each of the modules at these paths."""
    generator = torch.Generator().manual_seed(seed)
    hidden = lm.architecture.d_out
    modules = {
        path: Bottleneck(lm.model.get_submodule(path), hidden, width, activation, generator)
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
    """Make PEFT's LoRA for each of the modules at these paths: W k + b + (alpha / r) B A k.

    B is 0 at first. The parameters are fp32, whatever the model is, under PEFT's names.

    Args:
        kind: `rslora`, which divides alpha by the root of r; `dora`, which takes the direction of
            W + B A and learns its length; any other is as above.

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
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(originals),
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
        fan_in_fan_out={is_transposed(module) for module in originals.values()} == {True},
    )
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, lm.model, NAME)
    modules = {}
    parameters = {}
    for path, original in originals.items():
        modules[path] = lm.model.get_submodule(path).eval()
        replace_module(lm.model, path, original)
        for name, parameter in modules[path].named_parameters():
            if not name.startswith("base_layer."):
                parameter.requires_grad_(False)
                parameter.data = parameter.data.float()
                parameters[f"{PREFIX}{path}.{name}".replace(f".{NAME}.", ".")] = parameter
    del lm.model.peft_config
    return Adapters(modules, parameters)


@torch.no_grad()
def weight_changes(adapters: Adapters) -> dict[str, Tensor]:
    """Return the changes of weights that low-rank adapters amount to: (d_out, d_in), by path."""
    changes = {}
    for path, module in adapters.modules.items():
        change: Tensor = module.get_delta_weight(NAME)  # type: ignore[operator]
        changes[path] = change.T.contiguous() if is_transposed(module.get_base_layer()) else change  # type: ignore[operator]
    return changes


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
