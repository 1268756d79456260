"""A routed memory beside a text encoder: folio's idea, for what things look like.

Each edit is a leaf: the vector that `target.py` solves for, kept beside the weights. Where a prompt
holds the words of a leaf's subject, the vector is added to the output of the block's MLP at the
subject's last token; every other prompt is read as before, bit for bit. Of several leaves with the
same subject, the one whose prompt shares the most tokens with the text counts, then the newest.
Leaves know nothing of each other, so taking one back leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from errata.images.encoder import TextEncoder
from errata.images.image_edit import ImageEdit
from errata.images.method import ImageMethod
from errata.images.settings import ValueSettings
from errata.images.target import solve
from errata.storage.state import tensor


class Memory(ImageMethod):
    """Adds a vector where a prompt names an edit's subject; weights stay (routed memory)."""

    name = "memory"
    settings_class: ClassVar[type[ValueSettings]] = ValueSettings

    def __init__(self, settings: ValueSettings, encoders: Sequence[TextEncoder]) -> None:
        super().__init__(settings, encoders)
        self.edits: list[ImageEdit] = []
        self._leaves: list[list[Tensor]] = [[] for _ in self.encoders]
        self._hooks: list[Any] = []

    def write(self, edit: ImageEdit) -> tuple[float, int]:
        """Solve for the vector in each encoder as it is without leaves, and keep it."""
        with self.removed():
            found = [
                solve(encoder, layer, edit, self.settings)
                for encoder, layer in zip(self.encoders, self.layers, strict=True)
            ]
        for leaves, solved in zip(self._leaves, found, strict=True):
            leaves.append(solved.delta.float().cpu())
        self.edits.append(edit)
        return min(each.share for each in found), sum(each.steps for each in found)

    def keep(self, numbers: Sequence[int]) -> list[int]:
        """Keep the leaves of these edits; none is written again."""
        self.edits = [self.edits[number] for number in numbers]
        self._leaves = [[leaves[number] for number in numbers] for leaves in self._leaves]
        self.install()
        return []

    def install(self) -> None:
        """Hook the encoders."""
        self.remove()
        for place, encoder in enumerate(self.encoders):
            router = _Router(self, encoder, self._leaves[place])
            self._hooks += [
                encoder.body.register_forward_pre_hook(router.read, with_kwargs=True),
                encoder.matrix(self.layers[place]).register_forward_hook(router.add),
            ]

    def remove(self) -> None:
        """Unhook the encoders."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state(self) -> dict[str, Tensor]:
        """Return the leaves of each encoder, (edits, width)."""
        found = {}
        for encoder, layer, leaves in zip(self.encoders, self.layers, self._leaves, strict=True):
            width = encoder.matrix(layer).out_features
            found[f"{encoder.name}.leaves"] = (
                torch.stack(leaves) if leaves else torch.zeros(0, width)
            )
        return found

    def load_state(self, tensors: Mapping[str, Tensor], edits: Sequence[ImageEdit]) -> None:
        """Restore the leaves, and install them."""
        read = []
        for encoder, layer in zip(self.encoders, self.layers, strict=True):
            width = encoder.matrix(layer).out_features
            read.append(
                list(tensor(tensors, f"{encoder.name}.leaves", (len(edits), width)).float())
            )
        self.edits, self._leaves = list(edits), read
        self.install()


class _Router:
    """Finds the leaves of the texts that an encoder is about to read, and adds them."""

    def __init__(self, memory: Memory, encoder: TextEncoder, leaves: Sequence[Tensor]) -> None:
        self.memory, self.encoder, self.leaves = memory, encoder, leaves
        self.found: list[tuple[int, int, int]] = []

    def read(self, _: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Note (text, place, leaf) for every subject in the texts' tokens."""
        ids = named.get("input_ids", given[0] if given else None)
        self.found = []
        if ids is None:
            return
        for row, text in enumerate(ids.reshape(-1, ids.shape[-1]).tolist()):
            self.found += [(row, place, leaf) for place, leaf in self._leaves_of(text).items()]

    def _leaves_of(self, ids: list[int]) -> dict[int, int]:
        """Return place -> leaf for a text."""
        best: dict[int, tuple[int, int]] = {}
        words = set(ids)
        for leaf, edit in enumerate(self.memory.edits):
            spans = self.encoder.spans(ids, edit.subject)
            if spans:
                own = set(self.encoder.tokenizer(edit.prompt, verbose=False)["input_ids"])
                for _, last in spans:
                    best[last] = max(best.get(last, (-1, -1)), (len(words & own), leaf))
        return {place: leaf for place, (_, leaf) in best.items()}

    def add(self, _: Any, __: Any, out: Tensor) -> Tensor:
        """Add the leaves' vectors to (texts, places, width)."""
        if not self.found:
            return out
        changed = out.clone()
        for row, place, leaf in self.found:
            changed[row, place] += self.leaves[leaf].to(out)
        return changed
