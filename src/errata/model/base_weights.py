"""What editing asks of a base model's weights, and of torch while something is learned on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from errata.errors import ConfigError


def check(base: PreTrainedModel) -> None:
    """Make sure that the weights can be edited where they are.

    Raises:
        ConfigError: some are offloaded, or were made in inference mode.
    """
    for name, parameter in base.named_parameters():
        if parameter.is_meta:
            raise ConfigError(
                f"{name} is not in memory (offloaded to CPU or disk); load the base model with a "
                "device_map that keeps all weights on devices, or without one."
            )
        if parameter.is_inference():
            raise ConfigError(
                f"{name} was made within torch.inference_mode(), so nothing can be learned on it; "
                "load the base model outside of it."
            )


def check_movable(base: PreTrainedModel) -> None:
    """Make sure that the base model can be moved as a whole.

    Raises:
        ConfigError: it is spread over several devices.
    """
    devices = getattr(base, "hf_device_map", None) or {}
    if len(set(devices.values())) > 1:
        raise ConfigError(
            "this base model is spread over several devices and cannot be moved; load it where it "
            "shall be."
        )


def placement(base: PreTrainedModel) -> tuple[torch.dtype, torch.device]:
    """Return the dtype and the device of the embeddings, which change when the model is moved."""
    weight = base.get_input_embeddings().weight
    return weight.dtype, weight.device


def check_in_place(base: PreTrainedModel, expected: tuple[torch.dtype, torch.device]) -> None:
    """Make sure that the base model was not moved or converted since its placement was taken.

    Raises:
        ConfigError: it was.
    """
    current = placement(base)
    if current != expected:
        before, after = (
            f"{dtype} on {device}".removeprefix("torch.") for dtype, device in (expected, current)
        )
        raise ConfigError(
            f"the base model was {before} and is now {after}, without its edits; move the edited "
            "model instead, by its own to(), or load saved edits onto the base model as it is now."
        )


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Enable gradients and disable autocast and inference mode within a `with` block.

    What is learned does not depend on the modes that the caller has set.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield
