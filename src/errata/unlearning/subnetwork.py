"""`Subnetwork`: a few of a model's weights, whose removal takes some knowledge with it.

Bayazit et al., "Discovering Knowledge-Critical Subnetworks in Pretrained Language Models", EMNLP
2024, arXiv 2310.03084. It is kept as one bit a weight, so that it comes off to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from errata.errors import ArtifactError
from errata.lm import LM
from errata.storage.files import storage_error, write_whole

FILE = "subnetwork.safetensors"
_BITS = tuple(1 << place for place in range(8))


class Subnetwork:
    """Which weights of which matrices.

    Args:
        masks: the name of a parameter -> which of its weights, booleans of its shape.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.masks = {name: mask.cpu() for name, mask in masks.items()}

    @property
    def size(self) -> int:
        """How many weights are in it."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def among(self) -> int:
        """Of how many they were chosen."""
        return sum(mask.numel() for mask in self.masks.values())

    @contextmanager
    @torch.no_grad()
    def removed(self, lm: LM) -> Iterator[None]:
        """Within a `with` block, let these weights of a model be zero; then they are as before.

        Raises:
            ArtifactError: the model has no such matrices.
        """
        weights = self._weights(lm)
        before = {name: weight[self.masks[name]] for name, weight in weights.items()}
        try:
            self._zero(weights)
            yield
        finally:
            for name, weight in weights.items():
                weight[self.masks[name].to(weight.device)] = before[name]

    @torch.no_grad()
    def remove(self, lm: LM) -> None:
        """Set these weights of a model to zero, for good.

        Raises:
            ArtifactError: the model has no such matrices.
        """
        self._zero(self._weights(lm))

    def overlap(self, other: Subnetwork) -> tuple[float, float]:
        """Return the share of this one's weights that lie in another one, too; and the share that
        would by chance, if as many of each matrix were drawn.
        """
        both, chance = 0.0, 0.0
        for name, mask in self.masks.items():
            if name in other.masks:
                both += float((mask & other.masks[name]).sum())
                chance += float(mask.sum()) * float(other.masks[name].float().mean())
        return both / max(1, self.size), chance / max(1, self.size)

    def save(self, folder: Path) -> None:
        """Write it to a folder, a bit a weight.

        Raises:
            StorageError: the folder cannot be written.
        """
        packed = {name: _packed(mask) for name, mask in self.masks.items()}
        shapes = {name: " ".join(map(str, mask.shape)) for name, mask in self.masks.items()}
        try:
            write_whole(folder / FILE, save(packed, metadata=shapes))
        except OSError as error:
            raise storage_error(folder, error) from error

    @classmethod
    def load(cls, folder: Path) -> Subnetwork:
        """Read it from a folder.

        Raises:
            ArtifactError: there is none, or it is damaged.
        """
        path = folder / FILE
        try:
            with safe_open(path, "pt") as file:
                shapes = file.metadata() or {}
                return cls(
                    {
                        name: _unpacked(file.get_tensor(name), tuple(map(int, shape.split())))
                        for name, shape in shapes.items()
                    }
                )
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{path}: no subnetwork can be read ({error}).") from error

    def _weights(self, lm: LM) -> dict[str, Tensor]:
        found = dict(lm.model.named_parameters())
        for name, mask in self.masks.items():
            if name not in found or found[name].shape != mask.shape:
                raise ArtifactError(
                    f"the model has no matrix {name} of shape {tuple(mask.shape)}; the subnetwork "
                    "is of another model."
                )
        return {name: found[name] for name in self.masks}

    def _zero(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            weight[self.masks[name].to(weight.device)] = 0


def _packed(mask: Tensor) -> Tensor:
    """Return a mask as bytes, eight weights a byte."""
    flat = mask.flatten().to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).reshape(-1, 8)
    return (flat * torch.tensor(_BITS, dtype=torch.uint8)).sum(1).to(torch.uint8)


def _unpacked(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    bits = (packed[:, None] & torch.tensor(_BITS, dtype=torch.uint8)) > 0
    count = torch.Size(shape).numel()
    if packed.dtype != torch.uint8 or not 0 <= bits.numel() - count < 8:
        raise ValueError(f"its bytes are no mask of shape {shape}")
    return bits.flatten()[:count].reshape(shape)
