"""SERAC: a store of edits, a classifier that says which edit a prompt is in the scope of, a
counterfactual model that reads that edit before it answers.

Mitchell et al., Memory-Based Model Editing at Scale, arXiv 2206.06520. An edit is kept as text. A
prompt q is in the scope of the nearest edit when exp(-s |e(q) - e(edit)|^2) >= `threshold`; then
the counterfactual model answers "edit, then q", else the base model, untouched. Both are trained
once, by `prepare`, on examples that are not in the stream.

e is a trained projection of what the host's own states, or a small encoder that is named, say of
the prompt. The counterfactual model is the host behind trained low-rank adapters, which only rows
in scope pass through, or a small model that is named.

What departs from the paper: the encoder under the projection is not fine-tuned; the edit's end is
learned too; the soft mixture of both models' answers is left out, since a decision is made once per
sequence; out of scope are an example's other prompts and, in each step, other examples' own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, check_range
from errata.edit import Edit, Example
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.base import Method, Progress, no_progress
from errata.methods.editor_training import EditorTraining, check_examples
from errata.methods.fact_method import stated
from errata.methods.recognition.serac.models import (
    AdaptedHost,
    Counterfactual,
    EncoderReader,
    HostReader,
    Scope,
    SmallModel,
)
from errata.patches.context import ContextPatch
from errata.storage import state


@dataclass(frozen=True)
class SeracConfig(MethodConfig):
    """Settings of SERAC.

    Attributes:
        layer: the host's block whose output tells prompts apart; None is the middle one.
        classifier: a small encoder that reads prompts, a folder or a hub name; None: the host's own
            states.
        counterfactual: a small model of the same vocabulary, a folder or a hub name; None: the host
            with adapters.
        width: of the scope embedding.
        rank: of the counterfactual model's adapters.
        training_steps: Adam steps that train classifier and adapters.
        batch: examples per step.
        lr: Adam's learning rate of the adapters.
        scope_lr: Adam's learning rate of the classifier.
        negatives: other examples' prompts per example that are shown as out of scope.
        edit_weight: of the counterfactual model's loss.
        scope_weight: of the classifier's loss.
        clip: largest norm of the gradients of a step.
        threshold: a prompt is in scope from this similarity on.
        template: how a fact is told and the prompt asked; {fact} is the edit's prompt and target,
            {prompt} stands last.
    """

    method: ClassVar[str] = "serac"

    classifier: str | None = None
    counterfactual: str | None = None
    width: int = 128
    rank: int = 8
    training_steps: int = 1000
    batch: int = 10
    lr: float = 1e-3
    scope_lr: float = 1e-3
    negatives: int = 32
    edit_weight: float = 0.1
    scope_weight: float = 1.0
    clip: float = 100.0
    threshold: float = 0.5
    template: str = "New Fact: {fact}.\nPrompt: {prompt}"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "rank", "training_steps", "batch", "negatives"):
            check_range(name, getattr(self, name), 1, math.inf)
        for name in ("lr", "scope_lr", "edit_weight", "scope_weight", "clip"):
            check_range(name, getattr(self, name), 0, math.inf)
        check_range("threshold", self.threshold, 0, 1)
        if "{fact}" not in self.template or not self.template.endswith("{prompt}"):
            raise ConfigError(
                f"template is {self.template!r}; it must have {{fact}} in it and end with {{prompt}}."
            )


class Serac(Method):
    """SERAC on one model: edits as text, read by a counterfactual model where a trained classifier
    says so.
    """

    config_class = SeracConfig
    phase = "recognition"
    reads_text = True
    undo_is = "exact per edit: its text is taken out of the store"
    paper = "arXiv 2206.06520"
    needs_training = True
    config: SeracConfig

    def __init__(self, config: SeracConfig, lm: LM) -> None:
        super().__init__(config, lm)
        places = lm.architecture
        self.layer = places.n_layers // 2 if config.layer is None else config.layer
        places.value_path(self.layer)
        self._read: dict[str, Tensor] = {}
        self._keys = torch.zeros(0, config.width)
        self._refresh()

    # what is trained

    @cached_property
    def reader(self) -> HostReader | EncoderReader:
        """What reads prompts for the classifier; it is not trained."""
        name = self.config.classifier
        return (
            HostReader(self.lm, self.layer) if name is None else EncoderReader(name, self.lm.device)
        )

    @cached_property
    def scope(self) -> Scope:
        """The classifier's trained part."""
        return Scope(self.reader.width, self.config.width, self.config.seed).to(self.lm.device)

    @cached_property
    def counterfactual(self) -> Counterfactual:
        """What answers prompts in scope."""
        name = self.config.counterfactual
        return (
            AdaptedHost(self.lm, self.config.rank, self.config.seed)
            if name is None
            else SmallModel(self.lm, name)
        )

    @cached_property
    def training(self) -> EditorTraining:
        """How far training has come."""
        config = self.config
        scope = {f"scope.{name}": parameter for name, parameter in self.scope.named_parameters()}
        answering = {
            f"counterfactual.{name}": parameter
            for name, parameter in self.counterfactual.parameters.items()
        }
        rates = {**dict.fromkeys(scope, config.scope_lr), **dict.fromkeys(answering, config.lr)}
        return EditorTraining(
            {**scope, **answering},
            rates,
            config.training_steps,
            config.batch,
            config.clip,
            config.seed,
        )

    @property
    def steps_left(self) -> int:
        """EditorTraining steps still to be made."""
        return self.training.left

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Train classifier and counterfactual model; go on where it stopped."""
        check_examples("serac", examples, "rephrases", "others")
        prompts = [
            p
            for example in examples
            for p in (example.edit.prompt, *example.rephrases, *example.others)
        ]
        prompts = list(dict.fromkeys(prompts))
        self._read = dict(zip(prompts, self.reader.read(prompts), strict=True))
        asked = [example.edit.prompt for example in examples]

        def loss(example: Example, rng: random.Random) -> Tensor:
            others = [
                p for p in rng.choices(asked, k=self.config.negatives) if p != example.edit.prompt
            ]
            return self.config.edit_weight * self.edit_loss(
                example, rng.choice((example.edit.prompt, *example.rephrases))
            ) + self.config.scope_weight * self.scope_loss(example, others)

        self.training.run(examples, loss, progress)
        self._read = {}

    def scope_loss(self, example: Example, more: Sequence[str] = ()) -> Tensor:
        """The classifier's loss: the rephrases are in the example's scope; its other prompts, and
        `more`, are not.
        """
        edit, inside, outside = (
            torch.stack([self._read[p] for p in prompts])
            if self._read
            else self.reader.read(prompts)
            for prompts in ([example.edit.prompt], example.rephrases, [*example.others, *more])
        )
        return self.scope.loss(edit[0], inside, outside)

    def edit_loss(self, example: Example, prompt: str) -> Tensor:
        """The counterfactual model's NLL of the target, asked so, with the edit before it."""
        edit = example.edit
        row = self.lm.encode(
            self._context(edit) + prompt, edit.target, self.lm.ending_of(edit.prompt, edit.target)
        )
        batch = self.lm.batch([row])
        rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        logits = self.counterfactual.logits(batch)[rows, columns].float()
        return F.cross_entropy(logits, labels.to(logits.device))

    # editing

    @property
    def patch(self) -> ContextPatch:
        """What puts an edit in front of the prompts that are in its scope."""
        return self._patch

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Put edits into the store."""
        try:
            for edit in edits:
                self._keys = torch.cat([self._keys, self._embedded([edit.prompt])])
                self._edits.append(edit)
                progress(1)
        finally:
            self._refresh()

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Take edits out of the store."""
        gone = self.check_ids(edit_ids)
        kept = [i for i, edit in enumerate(self._edits) if edit.id not in gone]
        self._keys, self._edits = self._keys[kept], [self._edits[i] for i in kept]
        self._refresh()

    def clear(self) -> None:
        """Forget all edits; what was trained stays."""
        self._keys, self._edits = self._keys[:0], []
        self._refresh()

    @torch.no_grad()
    def similarities(self, prompts: Sequence[str]) -> Tensor:
        """How much prompts are in the scope of each edit: (prompts, edits), from 0 to 1. The base
        model must be alone.
        """
        distances = torch.cdist(
            self._embedded(prompts), self._keys, compute_mode="donot_use_mm_for_euclid_dist"
        )
        return self.scope.log_similarity(distances.to(self.lm.device)).exp().cpu()

    def _contexts(self, prompts: list[str]) -> list[tuple[str, ...]]:
        """What each prompt is answered with: the nearest edit's text, the latest of equals; nothing
        out of scope.
        """
        similar = self.similarities(prompts).flip(1)
        best, which = similar.max(1)
        chosen = [self._edits[len(self._edits) - 1 - int(i)] for i in which]
        return [
            (self._context(edit),) if share >= self.config.threshold else ()
            for edit, share in zip(chosen, best.tolist(), strict=True)
        ]

    def _context(self, edit: Edit) -> str:
        return self.config.template.removesuffix("{prompt}").replace("{fact}", stated(edit))

    def _refresh(self) -> None:
        self._patch = self.counterfactual.patch(self._contexts if self._edits else None)

    @torch.no_grad()
    def _embedded(self, prompts: Sequence[str]) -> Tensor:
        embedded: Tensor = self.scope(self.reader.read(prompts)).cpu()
        return embedded

    # saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was trained, the edits' keys (edits, width), and how far training has come."""
        tensors = {
            name: tensor.detach().cpu().clone() for name, tensor in self.training.parameters.items()
        }
        moments, told = self.training.state()
        return {**tensors, **moments, "keys": self._keys.clone()}, told

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        keys = state.tensor(tensors, "keys", (len(edits), self.config.width))
        with torch.no_grad():
            state.copy_into(self.training.parameters, tensors)
        self.training.load_state(tensors, values)
        if edits and not self.prepared:
            raise ValueError("there are edits, and training has not come to its end")
        self._keys, self._edits = keys, list(edits)
        self._refresh()
