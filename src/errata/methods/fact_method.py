"""`FactMethod`: the base of methods that put relevant edits as text in front of a prompt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.base import Method, Progress, no_progress
from errata.patches import ContextPatch
from errata.retrieval import RetrievalConfig, retriever
from errata.storage import state

TEMPLATE = "New Fact: {fact}.\nPrompt: {prompt}"
"""The default template, IKE's."""


def fact_text(edit: Edit) -> str:
    """Return the fact of an edit as text: its prompt and its target."""
    return f"{edit.prompt} {edit.target.rstrip().removesuffix('.')}"


def fact_context(template: str, fact: Edit) -> str:
    """Return what a template puts in front of a prompt."""
    return template.removesuffix("{prompt}").replace("{fact}", fact_text(fact))


def fact_contexts(template: str, facts: Sequence[Edit]) -> tuple[str, ...]:
    """Return what a template puts in front of a prompt for several facts, one piece for each.

    What stands behind the fact's line in the template comes once, behind the last fact.
    """
    line, end, rest = template.removesuffix("{prompt}").partition("\n")
    pieces = [line.replace("{fact}", fact_text(fact)) + end for fact in facts]
    return (*pieces[:-1], pieces[-1] + rest) if pieces else ()


def check_template(template: str) -> None:
    """Raise `ConfigError` unless a template has a place for the fact and ends with the prompt."""
    if "{fact}" not in template or not template.endswith("{prompt}"):
        raise ConfigError(
            f"template is {template!r}; it must have {{fact}} in it and end with {{prompt}}."
        )


class FactMethod(Method):
    """A method whose edits are a store of facts, retrieved by their prompts.

    Of two edits with the same prompt, the later one is the fact.

    Args:
        config: the method's settings.
        lm: the base model without patches.
        max_facts: the most facts that are put in front of a prompt.

    Attributes:
        retriever: retrieves facts.
        facts: the facts that it searches.
    """

    phase: ClassVar[Literal["recognition", "association", "mastery"]] = "recognition"
    reads_text = True
    undo_is = "exact, by taking the edit's text out"
    config: RetrievalConfig

    def __init__(self, config: RetrievalConfig, lm: LM, max_facts: int) -> None:
        super().__init__(config, lm)
        self.max_facts = max_facts
        self.facts: list[Edit] = []
        self.retriever = retriever(lm, config)
        self._patch = ContextPatch(room=config.room)

    @property
    def patch(self) -> ContextPatch:
        """Puts facts in front of prompts."""
        return self._patch

    @abstractmethod
    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """Return the text in front of a prompt, from its relevant facts, the best last.

        See `patches.context.ContextFor`.
        """

    def contexts(self, prompts: list[str]) -> list[tuple[str, ...]]:
        """Return what to put in front of each prompt; () where no fact is relevant.

        The model must carry no patch.
        """
        hits = self.retriever.find(prompts, self.max_facts)
        return [
            self.context(prompt, [self.facts[i] for i in reversed(indices)]) if indices else ()
            for prompt, indices in zip(prompts, hits, strict=True)
        ]

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits to the store."""
        self.retriever.calibrate()
        self._store([*self._edits, *edits])
        progress(len(edits))

    def clear(self) -> None:
        """Forget all edits."""
        self._store([])

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Take edits out of the store.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
        """
        removed = self.check_ids(edit_ids)
        self._store([edit for edit in self._edits if edit.id not in removed])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the retriever's state."""
        tensors, values = self.retriever.state()
        named = {f"retriever.{name}": tensor for name, tensor in tensors.items()}
        return named, {"retriever": values}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state()`."""
        self._edits = list(edits)
        self.facts = _latest(edits)
        self.retriever.load_state(
            [fact.prompt for fact in self.facts],
            {
                name.removeprefix("retriever."): tensor
                for name, tensor in tensors.items()
                if name.startswith("retriever.")
            },
            state.value(values, "retriever", dict),
        )
        self._patch.context_for = self.contexts if self.facts else None

    def _store(self, edits: list[Edit]) -> None:
        """Replace all edits."""
        facts = _latest(edits)
        if self.retriever.calibrated:
            self.retriever.index([fact.prompt for fact in facts])  # first, since it may raise
        self._edits, self.facts = edits, facts
        self._patch.context_for = self.contexts if facts else None


def _latest(edits: Sequence[Edit]) -> list[Edit]:
    """Return the last edit of each prompt, in the order of the edits."""
    last = {edit.prompt: index for index, edit in enumerate(edits)}
    return [edit for index, edit in enumerate(edits) if last[edit.prompt] == index]
