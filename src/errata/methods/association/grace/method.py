"""GRACE: a codebook beside one value matrix; a prompt near an entry's key gets that entry's value.

Hartvigsen et al., "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors",
NeurIPS 2023, arXiv 2211.11031. The key is the matrix's input at the prompt's last token, the value
replaces its output, the distance is Euclidean. An edit

- far from all entries (beyond `radius` + the nearest one's own) becomes an entry of its own,
  `radius` wide;
- near an entry with the same target's tokens joins it; the entry is widened to reach it
  (`coverage`), or moved half-way and widened (`moving_average`);
- near an entry with another target becomes an entry of its own, and both get half the distance as
  their radius.

Then the entry's value is trained on the edit by Adam through the layers above; no weight changes.

What departs from the published code, and what paper and code leave open:

- Targets are compared token by token (there: by the mean token id).
- Training stops when the loss is below `stop_loss` (there: always `steps` steps; 0 gives that), and
  the answer's end is learned too.
- An edit that the model answers already is placed like any other (there it is not written): its
  entry protects it from later edits. If it lies within an entry with its target, nothing is
  trained.
- Of two entries with the same key the later one counts; the radius of the earlier one would be
  negative, and it is dropped.
- A radius reaches at least as far as a key is from itself by rounding.
- `replace_prompt` is the whole prompt; there the slice leaves the key's own token out.
- Values are those of the feed-forward network's value matrix; the published GPT-2-XL run wraps the
  matrix before it.

Every value follows from its own entry's edits alone, so undoing other edits does not train it
again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, NonNegativeFloat, PositiveInt
from errata.edit import Edit
from errata.lm import LM
from errata.lm.suffix_tail import SuffixTail
from errata.lm.tail import Tail
from errata.methods.association.grace.patch import Codebook, Entry, Replacement
from errata.methods.base import Carry, Method, Progress, no_progress
from errata.storage import state

CLOSE = 1e-5
"""How far short of half-way the older of two entries with other targets is kept."""


@dataclass(frozen=True)
class GraceConfig(MethodConfig):
    """Settings of GRACE; the defaults are the paper's, the replacement that of WISE's comparison.

    Attributes:
        radius: eps_init, of a new entry; its unit is the scale of the model's keys.
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate.
        stop_loss: an edit is learned when its loss is below.
        start: a new value is drawn from [0, 1) (`cold`), or is the matrix's own output (`warm`).
        expansion: how an entry takes another edit in, see the module's docstring.
        replacement: at the prompt's last token, at the whole prompt, or at every token of prompt
            and answer.
    """

    method: ClassVar[str] = "grace"

    radius: NonNegativeFloat = 1.0
    steps: PositiveInt = 100
    lr: NonNegativeFloat = 1.0
    stop_loss: NonNegativeFloat = 1e-2
    start: Literal["cold", "warm"] = "cold"
    expansion: Literal["coverage", "moving_average"] = "coverage"
    replacement: Replacement = "replace_last"


class Grace(Method):
    """GRACE: keys of edited prompts, each with a radius and a value that replaces the output."""

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
        lm.architecture.value_module(lm.model, self.layer)  # an early error if out of range
        self._patch = Codebook(lm, self.layer, config.replacement)
        self._neighbours: dict[str, str | None] = {}
        """By edit: the first edit of the nearest entry at the time it was placed."""
        self._values: dict[tuple[str, ...], Tensor] = {}
        """By an entry's edits: its value."""

    @property
    def patch(self) -> Codebook:
        """The codebook."""
        return self._patch

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, one after another."""
        by_id = {edit.id: edit for edit in [*self._edits, *edits]}
        for edit in edits:
            query, label = self._key_and_label(edit)
            near = self.near(query)[0]
            before = near.edits if near is not None and near.label == label else []
            value = self._value([*(by_id[name] for name in before), edit])
            self.place(edit.id, query, label, value)
            self._edits.append(edit)
            progress(1)

    def near(self, query: Tensor) -> tuple[Entry | None, float, int]:
        """Return (entry, distance, number) of the nearest entry to a key (d_in,).

        The entry is None if a new one of `radius` would not overlap it; the number is -1 if it is
        farther away still.
        """
        book, radius = self._patch, self.config.radius
        widest = max((entry.radius for entry in book.entries.values()), default=0.0)
        distances, numbers = book.index.nearest(query[None], within=radius + max(radius, widest))
        distance, number = float(distances[0, 0]), int(numbers[0, 0])
        entry = book.entries.get(number)
        if entry is not None and distance > radius + entry.radius:
            entry = None
        return entry, distance, number

    def place(self, edit_id: str, query: Tensor, label: tuple[int, ...], value: Tensor) -> int:
        """Find or make the entry that answers an edit, by the paper's rules.

        Args:
            edit_id: the edit.
            query: (d_in,), its key.
            label: the target's tokens.
            value: (d_out,), the entry's value from now on.

        Returns:
            The entry's number.
        """
        book = self._patch
        near, distance, number = self.near(query)
        nearest = book.entries.get(number)
        self._neighbours[edit_id] = None if nearest is None else nearest.edits[0]
        if near is None:
            return book.add(query, Entry(value, self.config.radius, label, [edit_id]))
        if near.label == label:
            near.edits.append(edit_id)
            near.value = value
            if distance > near.radius:
                if self.config.expansion == "moving_average":
                    book.move(number, (book.index.keys_of([number])[0] + query) / 2)
                book.set_radius(number, distance)
            return number
        if distance / 2 < CLOSE:
            book.drop(number)
        else:
            book.set_radius(number, distance / 2 - CLOSE)
        return book.add(query, Entry(value, distance / 2, label, [edit_id]))

    def take(self, source: Method, carry: Carry) -> None:
        """Take edits' values from the same method on another model; read the keys on this one.

        Raises:
            ConfigError: the other is no such method.
        """
        if not isinstance(source, Grace):
            return super().take(source, carry)
        answered = {
            edit_id: entry.value
            for entry in source.patch.entries.values()
            for edit_id in entry.edits
        }
        for edit in source.edits:
            if edit.id in answered:  # else a later one with the same key has taken its place
                value = carry(answered[edit.id], source.layer, self.layer).to(self.lm.device)
                self.place(edit.id, *self._key_and_label(edit), value)
            else:
                self._neighbours[edit.id] = None
            self._edits.append(edit)
        self._values = {tuple(each.edits): each.value for each in self._patch.entries.values()}
        return None

    def clear(self) -> None:
        """Forget all edits."""
        self._edits = []
        self._patch.clear()
        self._neighbours = {}
        self._values = {}

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Remove edits; a value that none of them had a part in is not trained again."""
        removed = self.check_ids(edit_ids)
        kept = [edit for edit in self._edits if edit.id not in removed]
        if not all(self._stands_alone(edit_id) for edit_id in removed):
            values = {ids: value for ids, value in self._values.items() if not removed & set(ids)}
            with self.all_or_nothing():
                self.clear()
                self._values = values
                self.write(kept)
            return
        for edit_id in removed:
            number = self._patch.number_of(edit_id)
            if number is not None:
                self._patch.drop(number)
            del self._neighbours[edit_id]
            self._values.pop((edit_id,), None)
        self._edits = kept

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return keys (n, d_in), values (n, d_out), radii (n,), and each entry's edits and label.

        Each edit's neighbour when it was placed is returned too.
        """
        tensors, entries = self._patch.state()
        neighbours = [self._neighbours[edit.id] for edit in self._edits]
        return tensors, {"entries": entries, "met": neighbours}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        ids, neighbours = [edit.id for edit in edits], state.rows(values, "met", len(edits))
        self._patch.load_state(tensors, state.rows(values, "entries"))
        entries = self._patch.entries.values()
        answered = [edit_id for entry in entries for edit_id in entry.edits]
        if len(set(answered)) < len(answered) or not all(entry.edits for entry in entries):
            raise ValueError("'entries' has an edit twice, or an entry without one")
        if not {*answered, *neighbours} - {None} <= set(ids):
            raise ValueError("'entries' or 'met' names an edit that is not in the ledger")
        self._neighbours = dict(zip(ids, neighbours, strict=True))
        self._values = {tuple(entry.edits): entry.value for entry in entries}
        self._edits = list(edits)

    def _stands_alone(self, edit_id: str) -> bool:
        """Whether an edit has an entry to itself, and neither was placed near another's."""
        number = self._patch.number_of(edit_id)
        own = number is not None and self._patch.entries[number].edits == [edit_id]
        neighbours = self._neighbours
        return own and neighbours[edit_id] is None and edit_id not in neighbours.values()

    # values

    def _value(self, edits: Sequence[Edit]) -> Tensor:
        """Return the value (d_out,) of an entry with these edits: trained on one after another."""
        ids = tuple(edit.id for edit in edits)
        if ids not in self._values:
            start = self._value(edits[:-1]) if len(edits) > 1 else None
            self._values[ids] = self._train(edits[-1], start)
        return self._values[ids]

    def _train(self, edit: Edit, value: Tensor | None) -> Tensor:
        """Return a value (d_out,) trained on the edit by Adam, from another or from the start."""
        batch = self.lm.batch([self.encode(edit)])
        replaced = self._patch.replaced_tokens(batch.prompt_mask)
        tail = SuffixTail(self.lm, self.layer, batch, int(replaced[0].long().argmax()))
        outputs, batch = tail.values.float(), tail.batch
        replaced = replaced[:, tail.first :, None].to(outputs.device)
        rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        if value is None:
            value = self._start(edit, outputs[0, columns[0]])
        value = value.clone().requires_grad_()
        adam = torch.optim.Adam([value], lr=self.config.lr)
        for _ in range(self.config.steps):
            logits = tail.logits(torch.where(replaced, value, outputs), rows, columns)
            loss = F.cross_entropy(logits, labels.to(logits.device))
            if loss.item() < self.config.stop_loss:
                break
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        return value.detach()

    def _start(self, edit: Edit, output: Tensor) -> Tensor:
        """Return an untrained value (d_out,): the module's output, or one drawn for the edit."""
        if self.config.start == "warm":
            return output
        seed = hashlib.sha256(f"{self.config.seed}/value/{edit.id}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(seed))
        return torch.rand(output.shape, generator=generator).to(output)

    @torch.no_grad()
    def _key_and_label(self, edit: Edit) -> tuple[Tensor, tuple[int, ...]]:
        """Return (the key (d_in,) of the edit's prompt alone, the target's tokens)."""
        row = self.lm.encode(edit.prompt, edit.target)
        keys = Tail(self.lm, self.layer, self.lm.prompt_batch([edit.prompt])).keys
        return keys[0, -1].float(), row.ids[row.prompt_length :]
