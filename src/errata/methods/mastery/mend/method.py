"""MEND: a small trained network turns an edit's gradient into a change that stays local.

Mitchell et al., Fast Model Editing at Scale, arXiv 2110.11309. One backward pass of the edit's loss
gives inputs u and output gradients d at each edited matrix; the editor (see `mend/editor.py`) maps
them to a change, which is added. It is trained so that the edited model answers a rephrase with the
target (c_edit) and other prompts as before (c_loc).

What departs from the paper: only the value matrices of the last blocks are edited, not the first
matrices of their MLPs; other prompts come without answers, so the base model's own answer to each
is what should stay; the end of the answer is learned too; training ends after `training_steps`,
without early stopping; a feature that never varied in training is not divided by its deviation. The
sign of a step is the paper's (W - alpha ...); the published code adds, and learns the sign. In a
stream each edit is made on the model that earlier ones changed, for which the editor was not
trained.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import NonNegativeFloat, PositiveInt
from errata.edit import Edit, Example
from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.hooks import add_to_output
from errata.lm.tail import Tail
from errata.methods.base import Progress, no_progress
from errata.methods.editor_training import EditorTraining, EditorTrainingConfig, check_examples
from errata.methods.mastery.mend.editor import Editor, GradientFactors
from errata.methods.weight_method import WeightMethod

ANSWER_LENGTH = 16
"""The longest answer of the base model to another prompt that is preserved, in tokens."""


@dataclass(frozen=True)
class MendConfig(EditorTrainingConfig):
    """Settings of MEND, with the paper's defaults; more are described in `EditorTrainingConfig`.

    Attributes:
        layer: the topmost edited block; None is the last.
        blocks: how many blocks are edited, up to `layer`.
        rank: of the editor's layers.
        training_steps: Adam steps that train the editor (the paper: up to 10,000, stopped after
            2,000 to 3,000).
        lr: Adam's learning rate for the editor.
        step_size: initial alpha, the factor of a change.
        step_size_lr: Adam's learning rate for alpha.
        edit_weight: c_edit, of the edit's loss.
        locality_weight: c_loc, of the divergence on other prompts.
        learn_from: `rephrases` of the edit, or its own `prompt` (as some published settings have
            it).
    """

    method: ClassVar[str] = "mend"

    blocks: PositiveInt = 3
    rank: PositiveInt = 1920
    training_steps: PositiveInt = 3000
    lr: NonNegativeFloat = 1e-6
    step_size: float = 1e-4
    step_size_lr: NonNegativeFloat = 1e-4
    edit_weight: NonNegativeFloat = 0.1
    locality_weight: NonNegativeFloat = 1.0
    learn_from: Literal["rephrases", "prompt"] = "rephrases"


class Mend(WeightMethod):
    """Turns an edit's gradient into a change of several value matrices, by a trained network."""

    config_class = MendConfig
    needs_training = True
    paper = "arXiv 2110.11309"
    config: MendConfig

    def __init__(self, config: MendConfig, lm: LM) -> None:
        top = lm.architecture.n_layers - 1 if config.layer is None else config.layer
        self.layers = [*range(max(0, top - config.blocks + 1), top), top]
        super().__init__(config, lm, [lm.architecture.value_path(layer) for layer in self.layers])
        self._rows: dict[tuple[str, str | None], Row] = {}

    @cached_property
    def editor(self) -> Editor:
        """The network; untrained until `prepare` or `load_state`."""
        architecture, config = self.lm.architecture, self.config
        editor = Editor(
            architecture.d_in,
            architecture.d_out,
            matrices=len(self.layers),
            rank=config.rank,
            step_size=config.step_size,
            seed=config.seed,
        )
        return editor.to(self.lm.device)

    @cached_property
    def training(self) -> EditorTraining:
        """The training of the editor."""
        config, parameters = self.config, dict(self.editor.named_parameters())
        rates = {
            name: config.step_size_lr if name == "step_sizes" else config.lr for name in parameters
        }
        return EditorTraining(parameters, rates, config)

    @property
    def steps_left(self) -> int:
        """Training steps still to be made."""
        return self.training.steps_left

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Train the editor, from where training stopped.

        Raises:
            EditError: there are no examples, or one lacks other prompts or, where the editor
                learns from them, rephrases.
            ConfigError: the training was begun with other examples.
        """
        if self.config.learn_from == "rephrases":
            check_examples("mend", examples, "rephrases", "others")
        else:
            check_examples("mend", examples, "others")
        self.training.run(examples, self.loss, progress)
        self._rows = {}

    def loss(self, example: Example, rng: random.Random) -> Tensor:
        """Return c_edit NLL(rephrase) + c_loc KL(base || edited) of an example.

        The loss is taken on the model edited with the example, which enters the editor's running
        statistics.
        """
        config, edit = self.config, example.edit
        rephrased = config.learn_from == "rephrases"
        prompt = rng.choice(example.rephrases) if rephrased else edit.prompt
        factors = self.gradient_factors(self._answer(edit.prompt, edit.target))
        self.editor.observe(factors)
        rephrase = self._answer(prompt, edit.target)
        other = self._answer(rng.choice(example.others))
        with torch.no_grad():
            before = other.logits().log_softmax(-1)
        with self._changed(self.editor(factors)):
            nll = F.cross_entropy(rephrase.logits(), rephrase.labels)
            after = other.logits().log_softmax(-1)
        divergence = F.kl_div(after, before, log_target=True, reduction="batchmean")
        return config.edit_weight * nll + config.locality_weight * divergence

    def gradient_factors(self, answer: _Answer) -> list[GradientFactors]:
        """Return inputs u and output gradients d of each edited matrix, in fp32.

        They come from one backpropagation of the answer's NLL.
        """
        architecture = self.lm.architecture
        inputs: list[Tensor] = []
        probes: list[Tensor] = []

        def probe(keys: Tensor) -> Tensor:
            inputs.append(keys.detach().clone())
            zeros = torch.zeros(*keys.shape[:-1], architecture.d_out).to(keys)
            probes.append(zeros.requires_grad_())
            return probes[-1]

        with contextlib.ExitStack() as hooks:
            for layer in self.layers:
                module = architecture.value_module(self.lm.model, layer)
                hooks.enter_context(add_to_output(module, probe))
            loss = F.cross_entropy(answer.logits(), answer.labels)
        gradients = torch.autograd.grad(loss, probes)

        def per_token(tensor: Tensor) -> Tensor:
            return tensor.flatten(0, -2).to(self.lm.device).float()

        return [(per_token(u), per_token(d)) for u, d in zip(inputs, gradients, strict=True)]

    def learn(self, edits: Sequence[Edit]) -> None:
        """Add the editor's change to each matrix, computed on the model as edited so far."""
        (edit,) = edits
        row = self.lm.encode(edit.prompt, edit.target, self.lm.ending_of(edit.prompt, edit.target))
        with self.patch.on(self.lm):
            factors = self.gradient_factors(_Answer(self.lm, self.layers[0], row))
        with torch.no_grad():
            changes = self.editor(factors)
        deltas = self.patch.deltas
        for (path, delta), change in zip(list(deltas.items()), changes, strict=True):
            deltas[path] = delta + change.to(delta.device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the deltas, the editor, and the state of its training."""
        tensors, values = super().state()
        moments, progress = self.training.state()
        return {**tensors, **self.editor.state(), **moments}, {**values, **progress}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state()`."""
        self.editor.load_state(tensors)
        self.training.load_state(tensors, values)
        if edits and not self.prepared:
            raise ValueError("there are edits, and training has not come to its end")
        super().load_state(edits, tensors, values)

    @contextlib.contextmanager
    def _changed(self, changes: Sequence[Tensor]) -> Iterator[None]:
        """Add changes to the matrices during a `with` block; gradients flow into the changes."""
        with contextlib.ExitStack() as hooks:
            for layer, change in zip(self.layers, changes, strict=True):
                module = self.lm.architecture.value_module(self.lm.model, layer)
                hooks.enter_context(add_to_output(module, partial(_output_of, change)))
            yield

    def _answer(self, prompt: str, target: str | None = None) -> _Answer:
        """Encode a target with its ending, or else the model's own answer, once in a training."""
        if (prompt, target) not in self._rows:
            if target is None:
                (own,) = self.lm.generate([prompt], max_new_tokens=ANSWER_LENGTH)
                row = self.lm.encode(prompt, own or ".", "")
            else:
                row = self.lm.encode(prompt, target, self.lm.ending_of(prompt, target))
            self._rows[prompt, target] = row
        return _Answer(self.lm, self.layers[0], self._rows[prompt, target])


def _output_of(change: Tensor, keys: Tensor) -> Tensor:
    return F.linear(keys.float(), change.to(keys.device))


class _Answer:
    """The logits of one answer on the model as hooked; what lies below `layer` runs once.

    Attributes:
        labels: (n,), the tokens of the answer.
    """

    def __init__(self, lm: LM, layer: int, row: Row) -> None:
        batch = lm.batch([row])
        self._tail = Tail(lm, layer, batch)
        self._rows, self._columns, self.labels = batch.label_positions(
            batch.target_mask | batch.ending_mask
        )

    def logits(self) -> Tensor:
        """Return the logits (n, vocabulary) where the answer's tokens are predicted."""
        logits = self._tail.logits(self._tail.values, self._rows, self._columns)
        return logits.to(self.labels.device)
