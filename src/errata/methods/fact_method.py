"""`FactMethod`: what methods have in common that keep the edits as text and put those that bear on
a prompt in front.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from errata.edit import Edit
from errata.lm import LM
from errata.methods.base import Method, Progress, no_progress
from errata.patches import ContextPatch
from errata.retrieval import RetrievalConfig, retriever
from errata.storage import state


def stated(edit: Edit) -> str:
    """The fact that an edit states: its prompt and its target."""
    return f"{edit.prompt} {edit.target.rstrip().removesuffix('.')}"


class FactMethod(Method):
    """A method whose edits are a store of facts, found by their prompts.

    Of two edits that ask the same in the same words, the later one is the fact.

    Args:
        config: the method's settings.
        lm: the base model without patches.
        most: so many facts are put in front of a prompt, at most.

    Attributes:
        retriever: finds facts.
        facts: what is searched.
    """

    phase = "recognition"
    reads_text = True
    undo_is = "exact, by taking the edit's text out"
    config: RetrievalConfig

    def __init__(self, config: RetrievalConfig, lm: LM, most: int) -> None:
        super().__init__(config, lm)
        self.most = most
        self.facts: list[Edit] = []
        self.retriever = retriever(lm, config)
        self._patch = ContextPatch(room=config.room)

    @property
    def patch(self) -> ContextPatch:
        """What puts facts in front of prompts."""
        return self._patch

    @abstractmethod
    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """What to put in front of a prompt that these facts bear on, best last; see
        `patches.context.ContextFor`.
        """

    def contexts(self, prompts: list[str]) -> list[tuple[str, ...]]:
        """What to put in front of each prompt; () where no fact bears on it. The model must carry
        no patch.
        """
        found = self.retriever.find(prompts, self.most)
        return [
            self.context(prompt, [self.facts[i] for i in reversed(places)]) if places else ()
            for prompt, places in zip(prompts, found, strict=True)
        ]

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits to the store."""
        self.retriever.calibrate()
        self._hold([*self._edits, *edits])
        progress(len(edits))

    def clear(self) -> None:
        """Forget all edits."""
        self._hold([])

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Take edits out of the store."""
        gone = self.check_ids(edit_ids)
        self._hold([edit for edit in self._edits if edit.id not in gone])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the retriever knows."""
        tensors, values = self.retriever.state()
        return {f"retriever.{name}": tensor for name, tensor in tensors.items()}, {
            "retriever": values
        }

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        self._edits = list(edits)
        self.facts = _latest(edits)
        mine = {
            name.removeprefix("retriever."): t
            for name, t in tensors.items()
            if name.startswith("retriever.")
        }
        self.retriever.load_state(
            [fact.prompt for fact in self.facts], mine, state.value(values, "retriever", dict)
        )
        self._patch.context_for = self.contexts if self.facts else None

    def _hold(self, edits: list[Edit]) -> None:
        facts = _latest(edits)
        if self.retriever.calibrated:
            self.retriever.index([fact.prompt for fact in facts])  # first, since it may break off
        self._edits, self.facts = edits, facts
        self._patch.context_for = self.contexts if facts else None


def _latest(edits: Sequence[Edit]) -> list[Edit]:
    last = {edit.prompt: place for place, edit in enumerate(edits)}
    return [edit for place, edit in enumerate(edits) if last[edit.prompt] == place]
