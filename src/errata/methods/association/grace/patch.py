"""`Codebook`: stored keys beside one linear module, each with a radius; near one, the module says
what is stored with it.

The key is what the module reads at the prompt's last token; the nearest stored key is looked up
there once per sequence (see `routed.py`). Which entries there are, how wide they are and what they
say is a method's affair.

Reference: GRACE, arXiv 2211.11031, equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from errata.lm import LM
from errata.patches.routed import MAIN, ForwardState, RoutedModule, last_token
from errata.retrieval.key_index import KeyIndex, rounding
from errata.storage import state

REPLACEMENTS = ("replace_last", "replace_prompt", "replace_all")


@dataclass
class Entry:
    """One entry; its key stands in the codebook's index.

    Attributes:
        value: (d_out,), what the module says.
        radius: the value speaks for queries that are at most so far from the key.
        label: the target's tokens.
        edits: ids of the edits that it answers, in order; the first is its name.
        rounding: how far the key may be from itself; a radius reaches at least that far.
    """

    value: Tensor
    radius: float
    label: tuple[int, ...]
    edits: list[str] = field(default_factory=list)
    rounding: float = 0.0

    @property
    def reach(self) -> float:
        """How far the entry really reaches."""
        return max(self.radius, self.rounding)


class Codebook(RoutedModule):
    """Entries beside the value matrix of `layer`.

    Args:
        lm: the base model; nothing is installed on it yet.
        layer: the edited block.
        replacement: where the value replaces the module's output: at the key's token
            (`replace_last`), at every token of the prompt (`replace_prompt`), or at every token of
            prompt and answer (`replace_all`).
    """

    def __init__(self, lm: LM, layer: int, replacement: str = "replace_last") -> None:
        super().__init__(lm.architecture.value_path(layer))
        self.layer = layer
        self.replacement = replacement
        self.entries: dict[int, Entry] = {}
        self.index = KeyIndex(lm.architecture.d_in, lm.model.get_submodule(self.path).weight.device)
        self._rounding = rounding(lm.model.dtype)
        self._reaches: Tensor | None = None
        self._d_out, self._vocabulary = (
            lm.architecture.d_out,
            int(lm.model.get_input_embeddings().weight.shape[0]),
        )

    @property
    def empty(self) -> bool:
        """No entry yet."""
        return not self.entries

    def number_of(self, edit_id: str) -> int | None:
        """The entry that answers an edit; None when its place was taken by a later one."""
        return next(
            (number for number, entry in self.entries.items() if edit_id in entry.edits), None
        )

    def add(self, key: Tensor, entry: Entry) -> int:
        """A new entry; returns its number, which is larger than all before."""
        number = max(self.entries, default=-1) + 1
        self.index.add([number], key[None])
        self.entries[number] = entry
        self._measure(number, key)
        return number

    def move(self, number: int, key: Tensor) -> None:
        """Give an entry another key."""
        self.index.remove([number])
        self.index.add([number], key[None])
        self._measure(number, key)

    def drop(self, number: int) -> None:
        """Forget one entry; the index is not built anew."""
        self.index.remove([number])
        del self.entries[number]
        self._reaches = None

    def widen(self, number: int, radius: float) -> None:
        """Give an entry another radius, smaller or larger."""
        self.entries[number].radius = radius
        self._reaches = None

    def decide(self, keys: Tensor) -> Tensor:
        """Keys (batch, d_in) -> (batch,): the number of the nearest entry if it reaches so far,
        else `MAIN`.
        """
        reaches = self._reaches
        if reaches is None:
            reaches = torch.full(
                (max(self.entries, default=-1) + 1,), -1.0, dtype=torch.float64, device=keys.device
            )
            for number, entry in self.entries.items():
                reaches[number] = entry.reach
            self._reaches = reaches  # whole before another thread sees it
        widest = float(reaches.max()) if self.entries else -1.0
        distances, numbers = (
            found[:, 0].to(keys.device) for found in self.index.nearest(keys, within=widest)
        )
        return torch.where(distances <= reaches[numbers.clamp(min=0)], numbers, MAIN)

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Keys (n, d_in), values (n, d_out), radii (n,) in the order of their making; labels and
        edits.
        """
        entries = [self.entries[number] for number in self.index.ids]
        if not entries:
            return {}, []
        tensors = {
            "keys": self.index.state()["keys"],
            "values": torch.stack([entry.value for entry in entries]).cpu(),
            "radii": torch.tensor([entry.radius for entry in entries], dtype=torch.float64),
        }
        return tensors, [
            {"edits": list(entry.edits), "label": list(entry.label)} for entry in entries
        ]

    def load_state(self, tensors: Mapping[str, Tensor], entries: list[dict[str, Any]]) -> None:
        """Hold what `state` gave, and nothing else.

        Raises:
            KeyError, ValueError: something is missing or of the wrong shape.
        """
        self.clear()
        if not entries:
            return
        device, count = self.index.device, len(entries)
        keys = state.tensor(tensors, "keys", (count, self.index.width))
        values = state.tensor(tensors, "values", (count, self._d_out)).to(device)
        radii = state.tensor(tensors, "radii", (count,))
        if bool((radii < 0).any()):
            raise ValueError("'radii' has a negative one")
        self.index.add(range(count), keys)
        for number, (key, value, radius, held) in enumerate(
            zip(keys, values, radii.tolist(), entries, strict=True)
        ):
            label = tuple(
                state.whole(each, "label", 0, self._vocabulary - 1)
                for each in state.rows(held, "label")
            )
            self.entries[number] = Entry(value, radius, label, state.texts(held, "edits"))
            self._measure(number, key)

    def clear(self) -> None:
        """Forget all entries."""
        self.entries = {}
        self.index.remove(self.index.ids)
        self._reaches = None

    def _measure(self, number: int, key: Tensor) -> None:
        self.entries[number].rounding = self._rounding * float(key.norm())
        self._reaches = None

    # installed

    def _decide(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        rows = torch.arange(keys.shape[0], device=keys.device)
        return self.decide(keys[rows, last_token(mask)].float())

    def _answer(self, keys: Tensor, output: Tensor, now: ForwardState) -> Tensor | None:
        """The module's output, with the values in its place in the rows near an entry."""
        route = now.route
        if (
            route is None
            or (now.mask is None and self.replacement != "replace_all")
            or bool((route == MAIN).all())
        ):
            return None
        rows = output.reshape(*now.size, -1)
        nothing = rows.new_zeros(rows.shape[-1])
        values = torch.stack(
            [nothing if n == MAIN else self.entries[n].value.to(rows) for n in route.tolist()]
        )
        places = (
            self.places(now.mask.to(rows.device))
            if now.mask is not None
            else rows.new_ones(now.size).bool()
        )
        places &= (route != MAIN)[:, None].to(places.device)
        return torch.where(places[..., None], values[:, None], rows).reshape(output.shape)

    def places(self, mask: Tensor) -> Tensor:
        """The tokens (batch, width) at which values stand, from the prompt's mask (batch, width)."""
        if self.replacement == "replace_all":
            return torch.ones_like(mask)
        if self.replacement == "replace_prompt":
            return mask.clone()
        return torch.arange(mask.shape[1], device=mask.device) == last_token(mask)[:, None]
