"""SERAC: stored edits, a scope classifier, and a counterfactual model that reads the edit.

Mitchell et al., Memory-Based Model Editing at Scale, arXiv 2206.06520. An edit is kept as text. A
prompt q is in the scope of the nearest edit when exp(-s |e(q) - e(edit)|^2) >= `threshold`; then
the counterfactual model answers "edit, then q", else the base model, untouched. Both are trained
once, by `prepare`, on examples that are not in the stream.

e is a trained projection of a prompt's states in the host, or in a small encoder. The
counterfactual model is the host with trained low-rank adapters, which only rows in scope pass
through, or a small model.

What departs from the paper: the encoder under the projection is not fine-tuned; the edit's end is
learned too; the soft mixture of both models' answers is left out, since a decision is made once per
sequence; out of scope are an example's other prompts and, in each step, other examples' own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import Fraction, NonNegativeFloat, PositiveInt
from errata.edit import Edit, Example
from errata.lm import LM
from errata.methods.base import Method, Progress, no_progress
from errata.methods.editor_training import EditorTraining, EditorTrainingConfig, check_examples
from errata.methods.fact_method import TEMPLATE, check_template, fact_context
from errata.methods.recognition.serac.adapted_host import AdaptedHost
from errata.methods.recognition.serac.scope_classifier import (
    HostEncoder,
    ScopeClassifier,
    SmallEncoder,
)
from errata.methods.recognition.serac.small_model import SmallModel
from errata.patches.context import ContextPatch
from errata.storage import state


@dataclass(frozen=True)
class SeracConfig(EditorTrainingConfig):
    """Settings of SERAC; those of its training are described in `EditorTrainingConfig`.

    Attributes:
        layer: the host's block whose output the classifier reads; None is the middle one.
        classifier: a small encoder, a folder or a hub name; None: the host's own states.
        counterfactual: a small model of the same vocabulary, a folder or a hub name; None: the host
            with adapters.
        width: of the scope embedding.
        rank: of the counterfactual model's adapters.
        lr: Adam's learning rate of the counterfactual model.
        scope_lr: Adam's learning rate of the classifier.
        negatives: other examples' prompts per example that are given as out of scope.
        edit_weight: of the counterfactual model's loss.
        scope_weight: of the classifier's loss.
        threshold: a prompt is in scope from this similarity on.
        template: the text of a fact and a prompt; {fact} is the edit's prompt and target, {prompt}
            stands last.
    """

    method: ClassVar[str] = "serac"

    classifier: str | None = None
    counterfactual: str | None = None
    width: PositiveInt = 128
    rank: PositiveInt = 8
    lr: NonNegativeFloat = 1e-3
    scope_lr: NonNegativeFloat = 1e-3
    negatives: PositiveInt = 32
    edit_weight: NonNegativeFloat = 0.1
    scope_weight: NonNegativeFloat = 1.0
    threshold: Fraction = 0.5
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_template(self.template)


class Serac(Method):
    """Lets a counterfactual model read an edit and answer, where a trained classifier says so."""

    config_class = SeracConfig
    phase = "recognition"
    reads_text = True
    undo_is = "exact per edit: its text is taken out of the store"
    paper = "arXiv 2206.06520"
    needs_training = True
    config: SeracConfig

    def __init__(self, config: SeracConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.layer = lm.architecture.n_layers // 2 if config.layer is None else config.layer
        lm.architecture.value_path(self.layer)  # raises where there is no such layer
        self._features: dict[str, Tensor] = {}
        self._endings: dict[tuple[str, str], str | None] = {}
        self._embeddings = torch.zeros(0, config.width)
        self._refresh()

    # training

    @cached_property
    def encoder(self) -> HostEncoder | SmallEncoder:
        """Encodes prompts for the classifier; it is not trained."""
        name = self.config.classifier
        if name is None:
            return HostEncoder(self.lm, self.layer)
        return SmallEncoder(name, self.lm.device)

    @cached_property
    def classifier(self) -> ScopeClassifier:
        """The scope classifier's trained part."""
        classifier = ScopeClassifier(self.encoder.width, self.config.width, self.config.seed)
        return classifier.to(self.lm.device)

    @cached_property
    def counterfactual(self) -> AdaptedHost | SmallModel:
        """The model that answers prompts in scope."""
        name = self.config.counterfactual
        if name is None:
            return AdaptedHost(self.lm, self.config.rank, self.config.seed)
        return SmallModel(self.lm, name)

    @cached_property
    def training(self) -> EditorTraining:
        """The training of classifier and counterfactual model."""
        config, parameters = self.config, dict(self.classifier.named_parameters())
        scope = {f"scope.{name}": parameter for name, parameter in parameters.items()}
        answering = {
            f"counterfactual.{name}": parameter
            for name, parameter in self.counterfactual.parameters.items()
        }
        rates = {**dict.fromkeys(scope, config.scope_lr), **dict.fromkeys(answering, config.lr)}
        return EditorTraining({**scope, **answering}, rates, config)

    @property
    def steps_left(self) -> int:
        """Training steps still to be made."""
        return self.training.steps_left

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Train classifier and counterfactual model, from where training stopped.

        Raises:
            EditError: there are no examples, or one lacks rephrases or other prompts.
            ConfigError: the training was begun with other examples.
        """
        check_examples("serac", examples, "rephrases", "others")
        own_prompts = [each.edit.prompt for each in examples]
        all_prompts = (
            prompt
            for each in examples
            for prompt in (each.edit.prompt, *each.rephrases, *each.others)
        )
        prompts = list(dict.fromkeys(all_prompts))
        self._features = dict(zip(prompts, self.encoder.encode(prompts), strict=True))

        def loss(example: Example, rng: random.Random) -> Tensor:
            own = example.edit.prompt
            drawn = rng.choices(own_prompts, k=self.config.negatives)
            prompt = rng.choice((own, *example.rephrases))
            edit_loss = self.edit_loss(example, prompt)
            scope_loss = self.scope_loss(example, [each for each in drawn if each != own])
            return self.config.edit_weight * edit_loss + self.config.scope_weight * scope_loss

        self.training.run(examples, loss, progress)
        self._features, self._endings = {}, {}

    def scope_loss(self, example: Example, negatives: Sequence[str] = ()) -> Tensor:
        """Return the classifier's loss: rephrases are in scope; others and `negatives` are not."""
        (edit,) = self._encoded([example.edit.prompt])
        inside = self._encoded(example.rephrases)
        outside = self._encoded([*example.others, *negatives])
        return self.classifier.loss(edit, inside, outside)

    def edit_loss(self, example: Example, prompt: str) -> Tensor:
        """Return the counterfactual model's NLL of the target, with the edit before the prompt."""
        edit = example.edit
        asked = edit.prompt, edit.target
        if asked not in self._endings:
            self._endings[asked] = self.lm.ending_of(*asked)
        ending = self._endings[asked]
        context = fact_context(self.config.template, edit)
        row = self.lm.encode(context + prompt, edit.target, ending)
        batch = self.lm.batch([row])
        rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        logits = self.counterfactual.logits_at(batch, rows, columns)
        return F.cross_entropy(logits, labels.to(logits.device))

    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        """The encoder's features, (prompts, features); cached while training."""
        if self._features:
            return torch.stack([self._features[prompt] for prompt in prompts])
        return self.encoder.encode(prompts)

    # editing

    @property
    def patch(self) -> ContextPatch:
        """Puts an edit before prompts in its scope and lets the counterfactual model answer."""
        return self._patch

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits to the store."""
        try:
            for edit in edits:
                self._embeddings = torch.cat([self._embeddings, self._embed([edit.prompt])])
                self._edits.append(edit)
                progress(1)
        finally:
            self._refresh()

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Take edits out of the store.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
        """
        removed = self.check_ids(edit_ids)
        kept = [i for i, edit in enumerate(self._edits) if edit.id not in removed]
        self._embeddings, self._edits = self._embeddings[kept], [self._edits[i] for i in kept]
        self._refresh()

    def clear(self) -> None:
        """Forget all edits; what was trained stays."""
        self._embeddings, self._edits = self._embeddings[:0], []
        self._refresh()

    @torch.no_grad()
    def similarities(self, prompts: Sequence[str]) -> Tensor:
        """Return the similarity of prompts with each edit, (prompts, edits), from 0 to 1.

        The base model must carry no patch.
        """
        distances = torch.cdist(
            self._embed(prompts), self._embeddings, compute_mode="donot_use_mm_for_euclid_dist"
        )
        return self.classifier.log_similarity(distances.to(self.lm.device)).exp().cpu()

    def _contexts(self, prompts: list[str]) -> list[tuple[str, ...]]:
        """Return each prompt's context: the nearest, latest edit's text; () out of scope."""
        latest_first = self.similarities(prompts).flip(1)
        similarities, indices = latest_first.max(1)
        edits = [self._edits[len(self._edits) - 1 - int(i)] for i in indices]
        return [
            (fact_context(self.config.template, edit),)
            if similarity >= self.config.threshold
            else ()
            for edit, similarity in zip(edits, similarities.tolist(), strict=True)
        ]

    def _refresh(self) -> None:
        """Rebuild the patch from the edits."""
        self._patch = self.counterfactual.patch(self._contexts if self._edits else None)

    @torch.no_grad()
    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """Return the scope embeddings of prompts, (prompts, width), on the CPU."""
        embeddings: Tensor = self.classifier(self.encoder.encode(prompts)).cpu()
        return embeddings

    # saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the trained parameters, the edits' embeddings and the state of the training."""
        tensors = {
            name: tensor.detach().cpu().clone() for name, tensor in self.training.parameters.items()
        }
        moments, progress = self.training.state()
        return {**tensors, **moments, "keys": self._embeddings.clone()}, progress

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state()`."""
        embeddings = state.tensor(tensors, "keys", (len(edits), self.config.width))
        with torch.no_grad():
            state.copy_into(self.training.parameters, tensors)
        self.training.load_state(tensors, values)
        if edits and not self.prepared:
            raise ValueError("there are edits, and training has not come to its end")
        self._embeddings, self._edits = embeddings, list(edits)
        self._refresh()
