"""ReFACT: a fact of what things look like is a rank-one change of a text encoder's weights.

Arad et al., arXiv 2306.00738 (NAACL 2024). W' = W + (v* - W k*) u^T / (u^T k*), u = C^-1 k*, as in
ROME: k* is the mean key at the subject's last token over templates, C the second moment of keys of
text, v* what `target.py` solves for. Of a pipeline with several CLIP encoders each is edited.

What departs from the published code: C is taken over texts of the tokenizer's own words unless
`corpus` names a file, with a ridge; and one key, the mean one, is used everywhere (as R-ROME does),
so that W' k* = v* holds exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from errata.images.encoder import TextEncoder
from errata.images.image_edit import ImageEdit
from errata.images.method import ImageMethod
from errata.images.second_moment import second_moment
from errata.images.settings import ValueSettings, WeightSettings
from errata.images.target import solve
from errata.solvers.moments import SecondMoment
from errata.storage.state import tensor

Change = tuple[Tensor, Tensor]
"""A rank-one change: (width,) and (hidden,)."""


class Refact(ImageMethod):
    """Changes one matrix of each text encoder by rank one for each edit (ReFACT)."""

    name = "refact"
    settings_class: ClassVar[type[ValueSettings]] = WeightSettings
    settings: WeightSettings

    def __init__(self, settings: WeightSettings, encoders: Sequence[TextEncoder]) -> None:
        super().__init__(settings, encoders)
        self._weights = [
            each.matrix(layer).weight
            for each, layer in zip(self.encoders, self.layers, strict=True)
        ]
        self._base = [weight.detach().clone() for weight in self._weights]
        self._changes: list[list[Change]] = []
        self._moments: list[SecondMoment] = []

    @property
    def moments(self) -> list[SecondMoment]:
        """C of each encoder's keys, measured at the first use."""
        if not self._moments:
            self._moments = [
                second_moment(each, layer, self.settings)
                for each, layer in zip(self.encoders, self.layers, strict=True)
            ]
        return self._moments

    def write(self, edit: ImageEdit) -> tuple[float, int]:
        """Solve for the vector in each encoder, then change its matrix."""
        found, changes = [], []
        for encoder, layer, moment in zip(self.encoders, self.layers, self.moments, strict=True):
            solved = solve(encoder, layer, edit, self.settings)
            found.append(solved)
            changes.append(rank_one(solved.delta, solved.key, moment))
        self._changes.append(changes)
        self._add(changes)
        return min(each.share for each in found), sum(each.steps for each in found)

    def keep(self, numbers: Sequence[int]) -> list[int]:
        """Keep the edits before the first that goes; later ones were solved for on top of it."""
        before = [number for place, number in enumerate(numbers) if place == number]
        self._changes = self._changes[: len(before)]
        self.install()
        return list(numbers[len(before) :])

    def install(self) -> None:
        """Set the weights to the base's, plus every change in order."""
        self.remove()
        for changes in self._changes:
            self._add(changes)

    def remove(self) -> None:
        """Set the weights to the base's."""
        with torch.no_grad():
            for weight, base in zip(self._weights, self._base, strict=True):
                weight.copy_(base)

    def state(self) -> dict[str, Tensor]:
        """Return every change's two vectors: (edits, width) and (edits, hidden) per encoder."""
        found = {}
        for place, encoder in enumerate(self.encoders):
            width, hidden = self._base[place].shape
            of = [changes[place] for changes in self._changes]
            found[f"{encoder.name}.left"] = _stacked([left for left, _ in of], width)
            found[f"{encoder.name}.right"] = _stacked([right for _, right in of], hidden)
        return found

    def load_state(self, tensors: Mapping[str, Tensor], edits: Sequence[ImageEdit]) -> None:
        """Restore the changes, and install them."""
        parts = []
        for encoder, base in zip(self.encoders, self._base, strict=True):
            left = tensor(tensors, f"{encoder.name}.left", (len(edits), base.shape[0]))
            right = tensor(tensors, f"{encoder.name}.right", (len(edits), base.shape[1]))
            parts.append(list(zip(left.float(), right.float(), strict=True)))
        self._changes = [list(changes) for changes in zip(*parts, strict=True)]
        self.install()

    def _add(self, changes: Sequence[Change]) -> None:
        with torch.no_grad():
            for weight, (left, right) in zip(self._weights, changes, strict=True):
                weight += torch.outer(left, right).to(weight)


def rank_one(delta: Tensor, key: Tensor, moment: SecondMoment) -> Change:
    """Return the change that adds delta (width,) to what a matrix makes of a key (hidden,)."""
    direction = moment.solve(key[:, None])[:, 0]
    return delta.float().cpu(), (direction / (direction @ key.to(direction))).float().cpu()


def _stacked(rows: Sequence[Tensor], width: int) -> Tensor:
    return torch.stack(list(rows)) if rows else torch.zeros(0, width)
