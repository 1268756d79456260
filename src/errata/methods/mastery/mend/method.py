"""MEND: a small network, trained once, turns the gradient of one edit into a change that
generalizes and stays local.

Mitchell et al., Fast Model Editing at Scale, arXiv 2110.11309. One backward pass of the edit's loss
leaves inputs u and output gradients d at each edited matrix; the editor (see `mend_editor.py`) maps
them, and the change is added. It is trained so that the edited model answers a rephrase with the
target (c_edit) and other prompts as before (c_loc).

What departs from the paper: only the value matrices of the last blocks are edited, not what leads
into the feed-forward network; other prompts come without answers, so what must stay is the base
model's own answer to each; the end of the answer is learned too; training ends after
`training_steps`, without early stopping; a feature that never varied in training is not divided by
its deviation. The sign of a step is the paper's (W - alpha ...); the published code adds, and
learns the sign. In a stream each edit meets the model that earlier ones changed, for which the
editor was not trained.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, check_choice, check_range
from errata.edit import Edit, Example
from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.hooks import add_to_output
from errata.lm.tail import Tail
from errata.methods.base import Progress, no_progress
from errata.methods.editor_training import EditorTraining, check_examples
from errata.methods.mastery.mend.editor import Editor, Flow
from errata.methods.weight_method import WeightMethod

ANSWER_LENGTH = 16
"""The longest answer of the base model to another prompt that is held in place, in tokens."""


@dataclass(frozen=True)
class MendConfig(MethodConfig):
    """Settings of MEND, with the paper's defaults.

    Attributes:
        layer: the topmost edited block; None is the last.
        blocks: so many blocks are edited, up to `layer`.
        rank: of the editor's layers.
        training_steps: Adam steps that train the editor (the paper: up to 10,000, stopped after
            2,000 to 3,000).
        batch: examples per step.
        lr: Adam's learning rate for the editor.
        step_size: alpha, what a change is multiplied by, at first.
        step_size_lr: Adam's learning rate for alpha.
        edit_weight: c_edit, of the edit's loss.
        locality_weight: c_loc, of the divergence on other prompts.
        clip: largest norm of the gradients of a step.
        learn_from: `rephrases` of the edit, or its own `prompt` (as some published settings have
            it).
    """

    method: ClassVar[str] = "mend"

    blocks: int = 3
    rank: int = 1920
    training_steps: int = 3000
    batch: int = 10
    lr: float = 1e-6
    step_size: float = 1e-4
    step_size_lr: float = 1e-4
    edit_weight: float = 0.1
    locality_weight: float = 1.0
    clip: float = 100.0
    learn_from: Literal["rephrases", "prompt"] = "rephrases"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("blocks", "rank", "training_steps", "batch"):
            check_range(name, getattr(self, name), 1, math.inf)
        for name in ("lr", "step_size_lr", "edit_weight", "locality_weight", "clip"):
            check_range(name, getattr(self, name), 0, math.inf)
        check_choice("learn_from", self.learn_from, ("rephrases", "prompt"))


class Mend(WeightMethod):
    """MEND on one model: one backward pass and the editor's word per edit."""

    config_class = MendConfig
    needs_training = True
    paper = "arXiv 2110.11309"
    config: MendConfig

    def __init__(self, config: MendConfig, lm: LM) -> None:
        top = lm.architecture.n_layers - 1 if config.layer is None else config.layer
        self.layers = [*range(max(0, top - config.blocks + 1), top), top]
        super().__init__(config, lm, [lm.architecture.value_path(layer) for layer in self.layers])
        self._kept: dict[tuple[str, str | None], Row] = {}

    @cached_property
    def editor(self) -> Editor:
        """The network; as it is before training until `prepare` or `load_state`."""
        places, config = self.lm.architecture, self.config
        editor = Editor(
            places.d_in, places.d_out, len(self.layers), config.rank, config.step_size, config.seed
        )
        return editor.to(self.lm.device)

    @cached_property
    def training(self) -> EditorTraining:
        """How far the editor's training has come."""
        config, parameters = self.config, dict(self.editor.named_parameters())
        rates = {
            name: config.step_size_lr if name == "step_sizes" else config.lr for name in parameters
        }
        return EditorTraining(
            parameters, rates, config.training_steps, config.batch, config.clip, config.seed
        )

    @property
    def steps_left(self) -> int:
        """EditorTraining steps still to be made."""
        return self.training.left

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Train the editor; go on where it stopped."""
        if self.config.learn_from == "rephrases":
            check_examples("mend", examples, "rephrases", "others")
        else:
            check_examples("mend", examples, "others")
        self.training.run(examples, self.loss, progress)
        self._kept = {}

    def loss(self, example: Example, rng: random.Random) -> Tensor:
        """c_edit NLL(rephrase) + c_loc KL(base || edited) of one example, on the model edited with
        it.

        The editor's normaliser takes the example in.
        """
        config = self.config
        prompt = (
            rng.choice(example.rephrases)
            if config.learn_from == "rephrases"
            else example.edit.prompt
        )
        flows = self.flows(self._answer(example.edit.prompt, example.edit.target))
        self.editor.observe(flows)
        asked, other = (
            self._answer(prompt, example.edit.target),
            self._answer(rng.choice(example.others)),
        )
        with torch.no_grad():
            before = other.logits().log_softmax(-1)
        with self._changed(self.editor(flows)):
            loss = F.cross_entropy(asked.logits(), asked.labels)
            after = other.logits().log_softmax(-1)
        away = F.kl_div(after, before, log_target=True, reduction="batchmean")
        return config.edit_weight * loss + config.locality_weight * away

    def flows(self, answer: _Answer) -> list[Flow]:
        """Inputs u and output gradients d of each edited matrix, by backpropagation of the answer's
        NLL.
        """
        inputs: list[Tensor] = []
        probes: list[Tensor] = []

        def watch(keys: Tensor) -> Tensor:
            inputs.append(keys.detach().clone())
            probes.append(
                torch.zeros(*keys.shape[:-1], self.lm.architecture.d_out).to(keys).requires_grad_()
            )
            return probes[-1]

        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(
                    add_to_output(self.lm.architecture.value_module(self.lm.model, layer), watch)
                )
            loss = F.cross_entropy(answer.logits(), answer.labels)
        gradients = torch.autograd.grad(loss, probes)
        pairs = zip(inputs, gradients, strict=True)
        return [
            (
                u.flatten(0, -2).to(self.lm.device).float(),
                d.flatten(0, -2).to(self.lm.device).float(),
            )
            for u, d in pairs
        ]

    def learn(self, edits: Sequence[Edit]) -> None:
        """One change of each matrix, on the model as it is by now."""
        (edit,) = edits
        ending = self.lm.ending_of(edit.prompt, edit.target)
        with self.patch.on(self.lm):
            flows = self.flows(
                _Answer(self.lm, self.layers[0], self.lm.encode(edit.prompt, edit.target, ending))
            )
        with torch.no_grad():
            changes = self.editor(flows)
        for path, change in zip(list(self.patch.deltas), changes, strict=True):
            self.patch.deltas[path] = self.patch.deltas[path] + change.to(
                self.patch.deltas[path].device
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The deltas, the editor, and how far its training has come."""
        tensors, values = super().state()
        moments, told = self.training.state()
        return {**tensors, **self.editor.state(), **moments}, {**values, **told}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        self.editor.load_state(tensors)
        self.training.load_state(tensors, values)
        if edits and not self.prepared:
            raise ValueError("there are edits, and training has not come to its end")
        super().load_state(edits, tensors, values)

    @contextlib.contextmanager
    def _changed(self, changes: Sequence[Tensor]) -> Iterator[None]:
        """The model with the matrices changed; gradients flow into the changes."""
        with contextlib.ExitStack() as stack:
            for layer, change in zip(self.layers, changes, strict=True):
                module = self.lm.architecture.value_module(self.lm.model, layer)
                stack.enter_context(add_to_output(module, partial(_moved, change)))
            yield

    def _answer(self, prompt: str, target: str | None = None) -> _Answer:
        """The target as this model would end it, or the model's own answer; while training, each is
        looked up once.
        """
        if (prompt, target) not in self._kept:
            if target is None:
                (said,) = self.lm.generate([prompt], max_new_tokens=ANSWER_LENGTH)
                row = self.lm.encode(prompt, said or ".", "")
            else:
                row = self.lm.encode(prompt, target, self.lm.ending_of(prompt, target))
            self._kept[prompt, target] = row
        return _Answer(self.lm, self.layers[0], self._kept[prompt, target])


def _moved(change: Tensor, keys: Tensor) -> Tensor:
    return F.linear(keys.float(), change.to(keys.device))


class _Answer:
    """One answer on the model as it is now, from the value matrix of `layer` upward; all below runs
    once.

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
        """(n, vocabulary), where the answer's tokens are predicted."""
        return self._tail.logits(self._tail.values, self._rows, self._columns).to(
            self.labels.device
        )
