"""`PassageMethod`: the base of methods that read retrieved edits inside the model, once trained to.

An edit's text is its prompt, target and ending, as the model would say it. What the base model
computes for it is kept, and the prompts for which the edit is found read it, by weights that
`prepare` has trained; see `patches/passages.py`.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from errata.config import NonNegativeFloat, PositiveInt
from errata.edit import Edit, Example
from errata.lm import LM
from errata.lm.encoding import Row
from errata.methods.base import Progress, no_progress
from errata.methods.editor_training import EditorTraining, EditorTrainingConfig, check_examples
from errata.methods.fact_method import FactMethod
from errata.methods.passage_training import PassageTraining
from errata.patches.passages import Passage, PassageReader
from errata.retrieval import RetrievalConfig
from errata.storage import state

MOST_TOKENS = 1_000_000
"""Of one text that is read from a file; no context is longer."""


@dataclass(frozen=True)
class PassageConfig(RetrievalConfig, EditorTrainingConfig):
    """Settings of methods that are trained to read retrieved edits inside the model.

    Those of the retriever are described in `RetrievalConfig`, the others in `EditorTrainingConfig`.

    Attributes:
        passages: the most edits that a prompt reads.
        asked: edits that a round of training tells and asks for.
        training_steps: Adam steps.
        batch: rounds per step.
        lr: Adam's learning rate.
        gate_lr: its rate for what is no matrix: gates and the like.
        locality_weight: of the divergence from the base model on prompts that the edit is not
            about; they are few, since the retriever lets few pass, and a weight of 1 takes a third
            of what RETRO reads on atlas (docs/memory.md).
    """

    passages: PositiveInt = 1
    asked: PositiveInt = 16
    training_steps: PositiveInt = 1000
    batch: PositiveInt = 1
    clip: NonNegativeFloat = 1.0
    lr: NonNegativeFloat = 3e-3
    gate_lr: NonNegativeFloat = 3e-2
    locality_weight: NonNegativeFloat = 0.1


class PassageMethod(FactMethod):
    """A method whose edits are passages, read inside the model by trained weights.

    Args:
        config: the method's settings.
        lm: the base model without patches.
    """

    phase = "association"
    needs_training = True
    undo_is = "exact, by taking out what was computed for the edit's text"
    config: PassageConfig

    def __init__(self, config: PassageConfig, lm: LM) -> None:
        super().__init__(config, lm, config.passages)
        self._texts: dict[str, Passage] = {}
        self._patch: PassageReader = self.reader()

    @property
    def patch(self) -> PassageReader:
        """Reads passages."""
        return self._patch

    @property
    def network(self) -> nn.Module:
        """The weights that read; untrained until `prepare` or `load_state`."""
        return self._patch.network

    @abstractmethod
    def reader(self) -> PassageReader:
        """Return the patch, with weights that are not trained yet."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers that are kept of each token of a text."""

    @abstractmethod
    def states(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return what is kept of texts, (tokens, width) each; the model carries no patch."""

    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """Return the facts' ids."""
        return tuple(fact.id for fact in facts)

    @torch.no_grad()
    def read(self, rows: Sequence[Row]) -> list[Passage]:
        """Return texts as passages; the model carries no patch."""
        return [
            Passage(states.float().cpu(), row.prompt_length)
            for states, row in zip(self.states(rows), rows, strict=True)
        ]

    def stored(self, row: Row) -> Passage:
        """Return what is kept of a text: it as a passage, unless more is needed."""
        (passage,) = self.read([row])
        return passage

    # training

    @cached_property
    def training(self) -> EditorTraining:
        """The training of the weights."""
        parameters = dict(self.network.named_parameters())
        rates = {
            name: self.config.gate_lr if each.dim() < 2 else self.config.lr
            for name, each in parameters.items()
        }
        return EditorTraining(parameters, rates, self.config)

    @property
    def steps_left(self) -> int:
        """Training steps still to be made."""
        return self.training.steps_left

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Train the weights, from where training stopped.

        Raises:
            EditError: there are no examples, or one lacks rephrases or other prompts.
            ConfigError: the training was begun with other examples.
        """
        check_examples(self.name, examples, "rephrases", "others")
        lesson = PassageTraining(self.lm, self.patch, self, self.config, examples)
        with self._trainable():
            self.training.run(examples, lesson.loss, progress)

    @contextlib.contextmanager
    def _trainable(self) -> Iterator[None]:
        """Let gradients flow into the weights during a `with` block."""
        try:
            self.network.requires_grad_(True)
            yield
        finally:
            self.network.requires_grad_(False)
            self.network.zero_grad()
            self._keep(self._texts)

    # editing

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Read edits, and add them to the store."""
        self.retriever.calibrate()
        for edit in edits:
            self._texts = {**self._texts, edit.id: self.stored(self.encode(edit))}
            self._store([*self._edits, edit])
            progress(1)

    def _store(self, edits: list[Edit]) -> None:
        """Replace all edits; what was computed for others is forgotten."""
        super()._store(edits)
        self._keep({edit.id: self._texts[edit.id] for edit in edits})

    def _keep(self, texts: dict[str, Passage]) -> None:
        self._texts = self.patch.passages = texts

    # saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the retriever's state, the weights and their training, and all edits' passages:
        states (tokens, width) in a row, how long each is, and where each answer begins.
        """
        tensors, values = super().state()
        moments, progress = self.training.state()
        weights = {
            f"network.{name}": each.detach().cpu().clone()
            for name, each in self.network.named_parameters()
        }
        tensors |= {**weights, **moments}
        if kept := [self._texts[edit.id] for edit in self._edits]:
            tensors["states"] = torch.cat([each.states for each in kept])
            tensors["lengths"] = torch.tensor([len(each.states) for each in kept])
            tensors["answers"] = torch.tensor([each.answer for each in kept])
        return tensors, {**values, **progress}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        texts: dict[str, Passage] = {}
        if edits:
            lengths = state.numbers(tensors, "lengths", len(edits), 1, MOST_TOKENS)
            answers = state.numbers(tensors, "answers", len(edits), 0, max(lengths) - 1)
            stored = state.tensor(tensors, "states", (sum(lengths), self.width)).float()
            parts = torch.split(stored, lengths)
            texts = {
                edit.id: Passage(part, answer)
                for edit, part, answer in zip(edits, parts, answers, strict=True)
            }
        with torch.no_grad():
            state.copy_into(dict(self.network.named_parameters()), tensors, "network.")
        self.training.load_state(tensors, values)
        if edits and not self.prepared:
            raise ValueError("there are edits, and training has not come to its end")
        super().load_state(edits, tensors, values)
        self._keep(texts)
