"""GRACE: a codebook beside one value matrix; a prompt whose key is near an entry's gets that
entry's value.

Hartvigsen et al., "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors",
NeurIPS 2023, arXiv 2211.11031. The key is the matrix's input at the prompt's last token, the value
its output; nearness is Euclidean. An edit

- far from all entries (beyond `radius` + the nearest one's own) becomes an entry of its own,
  `radius` wide;
- near an entry with the same target's tokens joins it, which is widened to reach it (`coverage`),
  or moved half-way and widened (`moving_average`);
- near an entry with another target becomes an entry of its own, and both get half the distance as
  their radius.

Then the entry's value is trained on the edit by Adam. The layers above carry it; no weight changes.

What departs from the published code, and what paper and code leave open:

- Targets are compared token by token (there: by the mean token id).
- Training stops when the loss is below `stop_loss` (there: always `steps` steps; 0 gives that), and
  the answer's end is learned too.
- An edit that the model answers already is placed like any other (there it is not written): its
  entry makes later edits leave it alone. If it lies within an entry that says its target, nothing
  is trained.
- Of two entries with the same key the later one counts; the radius of the earlier one would be
  negative, and it is dropped.
- A radius reaches at least as far as a key is from itself by rounding.
- `replace_prompt` is the whole prompt; there the slice leaves the key's own token out.
- Values are those of the feed-forward network's value matrix; the published GPT-2-XL run wraps the
  matrix before it.

Every value follows from its own entry's edits alone, so whatever else is undone, it is not trained
again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, check_choice, check_range
from errata.edit import Edit
from errata.lm import LM
from errata.lm.tail import Tail
from errata.methods.association.grace.patch import REPLACEMENTS, Codebook, Entry
from errata.methods.base import Method, Progress, no_progress
from errata.storage import state

CLOSE = 1e-5
"""What the older of two entries with other targets is kept short of half-way."""


@dataclass(frozen=True)
class GraceConfig(MethodConfig):
    """Settings of GRACE; the defaults are the paper's, with WISE's comparison for the place of the
    value.

    Attributes:
        radius: eps_init, how wide a new entry is; it belongs to the scale of the model's keys.
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate.
        stop_loss: an edit is learned when its loss is below.
        start: a new value is drawn from [0, 1) (`cold`), or is what the matrix says (`warm`).
        expansion: how an entry takes another edit in, see the module's docstring.
        replacement: at the prompt's last token, at the whole prompt, or at every token of prompt
            and answer.
    """

    method: ClassVar[str] = "grace"

    radius: float = 1.0
    steps: int = 100
    lr: float = 1.0
    stop_loss: float = 1e-2
    start: Literal["cold", "warm"] = "cold"
    expansion: Literal["coverage", "moving_average"] = "coverage"
    replacement: Literal["replace_last", "replace_prompt", "replace_all"] = "replace_last"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("steps", self.steps, 1, math.inf)
        for name in ("radius", "lr", "stop_loss"):
            check_range(name, getattr(self, name), 0, math.inf)
        check_choice("start", self.start, ("cold", "warm"))
        check_choice("expansion", self.expansion, ("coverage", "moving_average"))
        check_choice("replacement", self.replacement, REPLACEMENTS)


class Grace(Method):
    """GRACE: keys of edited prompts, each with a radius and a value that takes the layer's place
    near it.
    """

    config_class = GraceConfig
    phase = "association"
    undo_is = (
        "exact: an entry that no other edit met is dropped, else the radius rules are replayed"
    )
    paper = "arXiv 2211.11031"
    config: GraceConfig

    def __init__(self, config: GraceConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        lm.architecture.value_module(lm.model, self.layer)  # a layer out of range is told now
        self._patch = Codebook(lm, self.layer, config.replacement)
        self._met: dict[
            str, str | None
        ] = {}  # by edit: the name of the entry near which it was placed
        self._values: dict[tuple[str, ...], Tensor] = {}  # by an entry's edits: its value

    @property
    def patch(self) -> Codebook:
        """The codebook."""
        return self._patch

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, one after another."""
        ledger = {edit.id: edit for edit in [*self._edits, *edits]}
        for edit in edits:
            query, label = self._read(edit)
            near = self.near(query)[0]
            before = near.edits if near is not None and near.label == label else []
            value = self._value([*(ledger[name] for name in before), edit])
            self.place(edit.id, query, label, value)
            self._edits.append(edit)
            progress(1)

    def near(self, query: Tensor) -> tuple[Entry | None, float, int]:
        """(entry, distance, number): the one that a key (d_in,) is too near to be placed without
        regard to it.

        The entry is None when there is none; the number is that of the nearest entry all the same,
        -1 if it is far away.
        """
        book, radius = self._patch, self.config.radius
        widest = max((entry.radius for entry in book.entries.values()), default=0.0)
        distances, numbers = book.index.nearest(query[None], within=radius + max(radius, widest))
        distance, number = float(distances[0, 0]), int(numbers[0, 0])
        entry = book.entries.get(number)
        return (
            entry if entry is not None and distance <= radius + entry.radius else None,
            distance,
            number,
        )

    def place(self, name: str, query: Tensor, label: tuple[int, ...], value: Tensor) -> int:
        """Find or make the entry that answers an edit: the paper's rules.

        Args:
            name: the edit's id.
            query: (d_in,), its key.
            label: the target's tokens.
            value: (d_out,), what the entry says from now on.

        Returns:
            The entry's number.
        """
        book = self._patch
        near, distance, nearest = self.near(query)
        self._met[name] = book.entries[nearest].edits[0] if nearest in book.entries else None
        if near is None:
            return book.add(query, Entry(value, self.config.radius, label, [name]))
        if near.label == label:
            near.edits.append(name)
            near.value = value
            if distance > near.radius:
                if self.config.expansion == "moving_average":
                    book.move(nearest, (book.index.keys_of([nearest])[0] + query) / 2)
                book.widen(nearest, distance)
            return nearest
        if distance / 2 < CLOSE:
            book.drop(nearest)
        else:
            book.widen(nearest, distance / 2 - CLOSE)
        return book.add(query, Entry(value, distance / 2, label, [name]))

    def clear(self) -> None:
        """Forget all edits."""
        self._edits = []
        self._patch.clear()
        self._met = {}
        self._values = {}

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Take edits back. Values that none of them had a part in are kept."""
        gone = self.check_ids(edit_ids)
        kept = [edit for edit in self._edits if edit.id not in gone]
        if not all(self._stands_alone(name) for name in gone):
            known = {names: value for names, value in self._values.items() if not gone & set(names)}
            with self.all_or_nothing():
                self.clear()
                self._values = known
                self.write(kept)
            return
        for name in gone:
            number = self._patch.number_of(name)
            if number is not None:
                self._patch.drop(number)
            del self._met[name]
            self._values.pop((name,), None)
        self._edits = kept

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Keys (n, d_in), values (n, d_out), radii (n,); which edits and which target each entry
        has; who met whom.
        """
        tensors, entries = self._patch.state()
        return tensors, {"entries": entries, "met": [self._met[edit.id] for edit in self._edits]}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        known, met = {edit.id for edit in edits}, state.rows(values, "met", len(edits))
        self._patch.load_state(tensors, state.rows(values, "entries"))
        answered = [name for entry in self._patch.entries.values() for name in entry.edits]
        if len(set(answered)) < len(answered) or not all(
            entry.edits for entry in self._patch.entries.values()
        ):
            raise ValueError("'entries' has an edit twice, or an entry without one")
        if not {name for name in (*answered, *met) if name is not None} <= known:
            raise ValueError("'entries' or 'met' names an edit that is not in the ledger")
        self._met = dict(zip((edit.id for edit in edits), met, strict=True))
        self._values = {tuple(entry.edits): entry.value for entry in self._patch.entries.values()}
        self._edits = list(edits)

    def _stands_alone(self, name: str) -> bool:
        """Whether an edit's entry is its own, and no other edit was placed near it or it near
        another.
        """
        number = self._patch.number_of(name)
        own = number is not None and self._patch.entries[number].edits == [name]
        return own and self._met[name] is None and name not in self._met.values()

    # values

    def _value(self, edits: Sequence[Edit]) -> Tensor:
        """(d_out,), what an entry with these edits says: trained on one after another."""
        names = tuple(edit.id for edit in edits)
        if names not in self._values:
            start = self._value(edits[:-1]) if len(edits) > 1 else None
            self._values[names] = self._train(edits[-1], start)
        return self._values[names]

    def _train(self, edit: Edit, value: Tensor | None) -> Tensor:
        """Adam on the edit's loss, from a value (d_out,) or from the start."""
        batch = self.lm.batch(
            [self.lm.encode(edit.prompt, edit.target, self.lm.ending_of(edit.prompt, edit.target))]
        )
        tail = Tail(self.lm, self.layer, batch)
        said = tail.values.float()
        places = self._patch.places(batch.prompt_mask.to(said.device))[..., None]
        rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        value = (
            (self._start(edit, said[0, columns[0]]) if value is None else value)
            .clone()
            .requires_grad_()
        )
        adam = torch.optim.Adam([value], lr=self.config.lr)
        for _ in range(self.config.steps):
            logits = tail.logits(torch.where(places, value, said), rows, columns)
            loss = F.cross_entropy(logits, labels.to(logits.device))
            if loss.item() < self.config.stop_loss:
                break
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        return value.detach()

    def _start(self, edit: Edit, said: Tensor) -> Tensor:
        """A value (d_out,) that has not been trained."""
        if self.config.start == "warm":
            return said
        seed = hashlib.sha256(f"{self.config.seed}/value/{edit.id}".encode()).digest()[:7]
        return torch.rand(
            said.shape, generator=torch.Generator().manual_seed(int.from_bytes(seed))
        ).to(said)

    @torch.no_grad()
    def _read(self, edit: Edit) -> tuple[Tensor, tuple[int, ...]]:
        """(the key (d_in,) of the prompt asked alone, the target's tokens)."""
        row = self.lm.encode(edit.prompt, edit.target)
        keys = Tail(self.lm, self.layer, self.lm.prompt_batch([edit.prompt])).keys
        return keys[0, -1].float(), row.ids[row.prompt_length :]
