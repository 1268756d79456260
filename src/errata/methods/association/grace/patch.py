"""`Codebook`: keys, radii and values beside one linear module; near a key, its value is the output.

The key is the module's input at the prompt's last token; the nearest stored key is looked up there
once per sequence (see `patches/routed.py`). Which entries exist, and their radii and values, is
decided in `method.py`.

Reference: GRACE, arXiv 2211.11031, equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from errata.lm import LM
from errata.patches.routed import MAIN, ForwardState, RoutedModule, last_token
from errata.retrieval.key_index import KeyIndex, rounding
from errata.storage import state

Replacement = Literal["replace_last", "replace_prompt", "replace_all"]
"""Where a value replaces the output: at the key's token, the prompt's, or the prompt's and answer's
tokens.
"""


@dataclass
class Entry:
    """One entry of a codebook; its key is in the codebook's index.

    Attributes:
        value: (d_out,), the module's output for queries within the radius.
        radius: the largest distance of such a query from the key.
        label: the target's tokens.
        edits: ids of the edits that it answers, in order; the first is its name.
        rounding: how far the key may be from itself when it is computed again; the entry reaches at
            least that far.
    """

    value: Tensor
    radius: float
    label: tuple[int, ...]
    edits: list[str] = field(default_factory=list)
    rounding: float = 0.0


class Codebook(RoutedModule):
    """Entries beside the value matrix of `layer`.

    Args:
        lm: the base model; nothing is installed on it yet.
        layer: the edited block.
        replacement: where the value replaces the module's output.

    Attributes:
        entries: by number, in the order of their creation.
        index: the keys, under the same numbers.
    """

    def __init__(self, lm: LM, layer: int, replacement: Replacement = "replace_last") -> None:
        super().__init__(lm.architecture.value_path(layer))
        self.replacement = replacement
        self.entries: dict[int, Entry] = {}
        self.index = KeyIndex(lm.architecture.d_in, lm.model.get_submodule(self.path).weight.device)
        self._relative_rounding = rounding(lm.model.dtype)
        self._reaches: Tensor | None = None
        self._d_out = lm.architecture.d_out
        self._vocabulary = int(lm.model.get_input_embeddings().weight.shape[0])

    @property
    def empty(self) -> bool:
        """Whether there is no entry yet."""
        return not self.entries

    def number_of(self, edit_id: str) -> int | None:
        """Return the number of the entry that answers an edit; None if a later one replaced it."""
        return next(
            (number for number, entry in self.entries.items() if edit_id in entry.edits), None
        )

    def add(self, key: Tensor, entry: Entry) -> int:
        """Add an entry with a key (d_in,); return its number, larger than all before."""
        number = max(self.entries, default=-1) + 1
        self.index.add([number], key[None])
        entry.rounding = self._rounding_of(key)
        self.entries[number] = entry
        self._reaches = None
        return number

    def move(self, number: int, key: Tensor) -> None:
        """Give an entry another key (d_in,)."""
        self.index.remove([number])
        self.index.add([number], key[None])
        self.entries[number].rounding = self._rounding_of(key)
        self._reaches = None

    def drop(self, number: int) -> None:
        """Remove one entry; the index is not built anew."""
        self.index.remove([number])
        del self.entries[number]
        self._reaches = None

    def set_radius(self, number: int, radius: float) -> None:
        """Give an entry another radius."""
        self.entries[number].radius = radius
        self._reaches = None

    def clear(self) -> None:
        """Remove all entries."""
        self.entries = {}
        self.index.remove(self.index.ids)
        self._reaches = None

    def decide(self, keys: Tensor) -> Tensor:
        """Return the entry that reaches each key, or `MAIN`: (batch, d_in) -> (batch,)."""
        reaches = self._reaches
        if reaches is None:
            reaches = torch.full(
                (max(self.entries, default=-1) + 1,), -1.0, dtype=torch.float64, device=keys.device
            )
            for number, entry in self.entries.items():
                reaches[number] = max(entry.radius, entry.rounding)
            self._reaches = reaches  # whole before another thread sees it
        widest = float(reaches.max()) if self.entries else -1.0
        distances, numbers = (
            nearest[:, 0].to(keys.device) for nearest in self.index.nearest(keys, within=widest)
        )
        return torch.where(distances <= reaches[numbers.clamp(min=0)], numbers, MAIN)

    def replaced_tokens(self, mask: Tensor) -> Tensor:
        """Return the tokens that get a value, given the prompt's mask; both (batch, width)."""
        if self.replacement == "replace_all":
            return torch.ones_like(mask)
        if self.replacement == "replace_prompt":
            return mask.clone()
        return torch.arange(mask.shape[1], device=mask.device) == last_token(mask)[:, None]

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Return keys (n, d_in), values (n, d_out), radii (n,), edits and labels of all entries.

        Entries are in order of creation.
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
        """Restore from `state`.

        Raises:
            KeyError, ValueError: something is missing or of the wrong shape.
        """
        self.clear()
        if not entries:
            return
        count = len(entries)
        keys = state.tensor(tensors, "keys", (count, self.index.width))
        values = state.tensor(tensors, "values", (count, self._d_out)).to(self.index.device)
        radii = state.tensor(tensors, "radii", (count,))
        if bool((radii < 0).any()):
            raise ValueError("'radii' has a negative one")
        self.index.add(range(count), keys)
        for number, (key, value, radius, entry) in enumerate(
            zip(keys, values, radii.tolist(), entries, strict=True)
        ):
            label = tuple(
                state.whole(token, "label", 0, self._vocabulary - 1)
                for token in state.rows(entry, "label")
            )
            edits = state.texts(entry, "edits")
            self.entries[number] = Entry(value, radius, label, edits, self._rounding_of(key))

    def _rounding_of(self, key: Tensor) -> float:
        """Return how far a key may be from itself when it is computed again."""
        return self._relative_rounding * float(key.norm())

    # installed

    def _decide(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        rows = torch.arange(keys.shape[0], device=keys.device)
        return self.decide(keys[rows, last_token(mask)].float())

    def _answer(self, keys: Tensor, output: Tensor, now: ForwardState) -> Tensor | None:
        """Return the output with the values in it, in the rows that are near an entry."""
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
        replaced = (
            rows.new_ones(now.size).bool()
            if now.mask is None
            else self.replaced_tokens(now.mask.to(rows.device))
        )
        replaced &= (route != MAIN)[:, None].to(replaced.device)
        return torch.where(replaced[..., None], values[:, None], rows).reshape(output.shape)
