"""`EditRows` and `EditSlots`: which edit answers each row of an engine's batch.

An engine that serves many requests at once lets them come and go between two tokens and moves them
about meanwhile. Both classes need neither the engine nor torch: they read and write the tensors
that they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from errata.engines.processor import EditProcessor, Route

Answering = tuple[int, Route, Sequence[int]]
"""A row of the logits, what its prompt is answered with, and what was said so far."""


def change_rows(edits: EditProcessor, logits: Any, rows: Iterable[Answering]) -> Any:
    """Change logits (rows, vocabulary), a tensor, in place where an edit answers; return them."""
    for row, route, said in rows:
        if route.next_token(said) is not None:
            own = logits[row].float().cpu().numpy()
            wanted = edits.change(route, said, own)
            if wanted is not own:
                logits[row] = logits.new_tensor(wanted)
    return logits


class EditRows:
    """Rows that an engine renumbers, telling what it did: vLLM's persistent batch.

    Args:
        edits: the exported edits.
    """

    def __init__(self, edits: EditProcessor) -> None:
        self.edits = edits
        self._rows: dict[int, tuple[Route, Sequence[int]]] = {}

    def add(self, row: int, prompt: Sequence[int] | None, said: Sequence[int]) -> None:
        """Take a request into a row, in the place of the one that was there.

        Args:
            prompt: its token ids; None: it has none, and no edit answers.
            said: the engine's own list of what the request was answered so far, which grows.
        """
        self._rows.pop(row, None)
        route = self.edits.route(prompt) if prompt is not None else Route()
        if route.tokens:
            self._rows[row] = route, said

    def remove(self, row: int) -> None:
        """Forget the request in a row."""
        self._rows.pop(row, None)

    def move(self, row: int, to: int, swap: bool) -> None:
        """Take a request to another row, in exchange for the one there, or in its place."""
        moved, other = self._rows.pop(row, None), self._rows.pop(to, None)
        if moved is not None:
            self._rows[to] = moved
        if other is not None and swap:
            self._rows[row] = other

    def change(self, logits: Any) -> Any:
        """Change logits (rows, vocabulary) in place where an edit answers; return them."""
        rows = ((row, route, said) for row, (route, said) in self._rows.items())
        return change_rows(self.edits, logits, rows)


class EditSlots:
    """Requests that stay where they are, while the rows of the logits point to them: vLLM's newer
    model runner, which keeps all tokens on the device.

    Args:
        edits: the exported edits.
        states: what the runner tells of its slots: `all_token_ids` and `prompt_len`.
    """

    def __init__(self, edits: EditProcessor, states: Any) -> None:
        self.edits, self.states = edits, states
        self._new: set[int] = set()
        self._routes: dict[int, Route] = {}

    def add(self, slot: int) -> None:
        """Take a request into a slot; `read` reads its prompt, which is not there yet."""
        self.remove(slot)
        self._new.add(slot)

    def remove(self, slot: int) -> None:
        """Forget the request in a slot."""
        self._new.discard(slot)
        self._routes.pop(slot, None)

    def read(self) -> None:
        """Decide which edits answer the requests that came."""
        for slot in sorted(self._new):
            route = self.edits.route(self._tokens(slot, 0, self._prompt(slot)))
            if route.tokens:
                self._routes[slot] = route
        self._new.clear()

    def change(self, logits: Any, context: Any) -> Any:
        """Change logits (rows, vocabulary) in place where an edit answers; return them.

        Args:
            context: the runner's account of this step's rows, a `LogitsContext`.
        """
        if self._routes.keys().isdisjoint(context.idx_mapping_np.tolist()):
            return logits  # nothing was asked of the device
        return change_rows(self.edits, logits, self._answering(context))

    def _answering(self, context: Any) -> Iterator[Answering]:
        """Yield the rows that an edit answers; a request has a row for each guessed token too."""
        slots, guessed = context.expanded_idx_mapping.tolist(), context.expanded_local_pos.tolist()
        fed, last = context.input_ids.tolist(), context.pos.tolist()
        tokens = dict(zip(zip(slots, guessed, strict=True), fed, strict=True))
        for row, (slot, count) in enumerate(zip(slots, guessed, strict=True)):
            start, end = self._prompt(slot), last[row] + 1 - count
            if slot in self._routes and end >= start:  # else the prompt is not read to its end
                said = self._tokens(slot, start, end)
                said += [tokens[slot, place] for place in range(1, count + 1)]
                yield row, self._routes[slot], said

    def _prompt(self, slot: int) -> int:
        return int(self.states.prompt_len.np[slot])

    def _tokens(self, slot: int, start: int, end: int) -> list[int]:
        return [int(token) for token in self.states.all_token_ids.gpu[slot, start:end].tolist()]
