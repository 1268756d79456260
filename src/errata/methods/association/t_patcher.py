"""T-Patcher: neurons beside the last feed-forward network, one for each token that was wrong.

Huang et al., "Transformer-Patcher: One Mistake Worth One Neuron", ICLR 2023, arXiv 2301.09785. (In
CaliNET, Dong et al., arXiv 2210.03329, all edits share some neurons.) With q the network's state
at a token, a neuron adds act(q k + b) v to the network's output. For each token of the answer that
the model does not predict there is one, and key, bias and value are trained together: the NLL of
the answer falls, `activate` * exp(-(q k + b)) where the neuron is to fire rises it above zero, and
`memorize` * (S(m k + b + `margin`) + S(m k + b - (q k + b) + `margin`)) keeps it silent on a memory
of other states m, S the mean of exp over the `hardest` largest.

What departs from the paper:

- Each edit is trained on the base model alone, not beside earlier neurons, and their states are not
  in its memory: neither order nor number of the others matters, and an undo takes neurons out.
- The memory is self-generated text, put to the model as prompts are, not a training set.
- act is ReLU in every model, so that a silent neuron changes nothing, bit for bit.
- q is the value matrix's input, in which the gates of today's networks have been applied already.
- Key and value are trained in multiples of the norms that the model's own have, so that one
  learning rate fits all models; a value begins at zero, where that of the paper is random.
- The answer's end is learned too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, NonNegativeFloat, NonNegativeInt, PositiveInt
from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.lm.background import background_texts, open_prompt, value_scale
from errata.lm.encoding import Row
from errata.lm.hooks import capture_input, stop_after
from errata.lm.tail import Tail
from errata.methods.separate_method import SeparateMethod
from errata.patches.key_values import KeyValues
from errata.solvers.values import with_prefix
from errata.storage import state

BATCH = 64
"""Background texts that are read together."""


@dataclass(frozen=True)
class TPatcherConfig(MethodConfig):
    """Settings of T-Patcher. `layer` is the last block unless set.

    Attributes:
        steps: Adam steps per edit.
        lr: Adam's learning rate.
        activate: weight of the activation loss.
        memorize: weight of the memory loss.
        margin: how far below zero, and below its own state, a neuron is kept in the memory.
        hardest: states of the memory that count, those at which a neuron is nearest to firing.
        background: self-generated texts whose states are the memory.
        prefixes: self-generated texts put before the prompt, in addition to the bare prompt.
        prefix_length: tokens of a prefix.
    """

    method: ClassVar[str] = "t-patcher"

    steps: PositiveInt = 30
    lr: NonNegativeFloat = 0.02
    activate: NonNegativeFloat = 1.0
    memorize: NonNegativeFloat = 1.0
    margin: NonNegativeFloat = 3.0
    hardest: PositiveInt = 100
    background: PositiveInt = 256
    prefixes: NonNegativeInt = 0
    prefix_length: PositiveInt = 10


class Neurons(KeyValues):
    """Neurons: keys (n, d_in), biases (n,) and values (n, d_out) of each edit."""

    def added(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return what neurons add to tokens, and where any fires."""
        stored, biases, values = self.stacked(keys.device)
        fired = fire(keys, stored, biases)
        return fired @ values, (fired > 0).any(-1)


def fire(queries: Tensor, keys: Tensor, biases: Tensor) -> Tensor:
    """Return how much neurons fire, (..., neurons), at queries (..., d_in)."""
    return F.linear(queries, keys, biases).relu()


class TPatcher(SeparateMethod):
    """Neurons beside the last value matrix, which fire where an edit's answer is due."""

    config_class = TPatcherConfig
    phase = "association"
    undo_is = "exact, by taking the edit's neurons out"
    paper = "arXiv 2301.09785"
    config: TPatcherConfig

    def __init__(self, config: TPatcherConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.layer = lm.architecture.n_layers - 1 if config.layer is None else config.layer
        self._patch = Neurons(lm.architecture.value_path(self.layer))

    @property
    def patch(self) -> Neurons:
        """The neurons."""
        return self._patch

    @cached_property
    def memory(self) -> Tensor:
        """States of self-generated text, (tokens, d_in), at which neurons are to be silent."""
        texts = [text for text in self._texts if text.strip()] or ["x"]
        rows = [row for text in texts if (row := self._told(text))]
        columns = enumerate(zip(*(row.ids for row in rows), strict=False))
        shared = next((place for place, ids in columns if len({*ids}) > 1), 0)
        module = self.lm.architecture.value_module(self.lm.model, self.layer)
        states: list[Tensor] = []
        for start in range(0, len(rows), BATCH):
            batch = self.lm.batch(rows[start : start + BATCH])
            with torch.no_grad(), capture_input(module) as seen, stop_after(module):
                self.lm.run(batch, use_cache=False)
            read = batch.attention_mask.bool()
            kept = read & (batch.attention_mask.cumsum(-1) > shared)
            if not states:  # what all begin with, once
                kept[0] = read[0]
            kept = kept.to(seen[0].device)
            states.append(seen[0].reshape(*kept.shape, -1)[kept].float())
        return torch.cat(states)

    @cached_property
    def prefixes(self) -> list[str]:
        """Self-generated texts that are put before the prompt."""
        count, length = self.config.prefixes, self.config.prefix_length
        seed = self.config.seed + 1
        return background_texts(self.lm, count, length, seed, shortest=length)

    @cached_property
    def _texts(self) -> list[str]:
        return background_texts(self.lm, self.config.background, seed=self.config.seed)

    def _told(self, text: str) -> Row | None:
        """Encode a text as a prompt and its answer; None if that is too long."""
        prompt = open_prompt(text)
        rest = text[len(prompt) :].strip()
        try:
            if rest:
                return self.lm.encode(prompt, rest)
            ids = self.lm.encode_prompt(text)
            return Row(tuple(ids), len(ids))
        except PromptTooLongError:
            return None

    def solve(self, edit: Edit) -> tuple[Tensor, ...]:
        """Train an edit's neurons; return keys (n, d_in), biases (n,) and values (n, d_out)."""
        objective = Objective(self, edit)
        parameters = objective.begin()
        adam = torch.optim.Adam(parameters, lr=self.config.lr)
        for _ in range(self.config.steps if objective.count else 0):
            adam.zero_grad()
            objective.loss(*parameters).backward()  # type: ignore[no-untyped-call]
            adam.step()
        return objective.neurons(*parameters)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return keys (n, d_in), biases (n,), values (n, d_out); neurons of each edit (edits,)."""
        if not self._edits:
            return {}, {}
        columns = [self._patch.columns[edit.id] for edit in self._edits]
        keys, biases, values = (torch.cat(each) for each in zip(*columns, strict=True))
        lengths = torch.tensor([len(each[1]) for each in columns])
        return {"keys": keys, "biases": biases, "values": values, "lengths": lengths}, {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        columns: list[tuple[Tensor, ...]] = []
        if edits:
            architecture = self.lm.architecture
            keys = state.tensor(tensors, "keys", (None, architecture.d_in))
            count = len(keys)
            biases = state.tensor(tensors, "biases", (count,))
            added = state.tensor(tensors, "values", (count, architecture.d_out))
            lengths = state.numbers(tensors, "lengths", len(edits), 0, count)
            if sum(lengths) != count:
                raise ValueError(f"'lengths' are {sum(lengths)} together; expected {count}")
            stored = (torch.split(each.clone(), lengths) for each in (keys, biases, added))
            columns = list(zip(*stored, strict=True))
        self.restore(edits, columns)


class Objective:
    """The loss of one edit as a function of its neurons.

    Args:
        method: whose settings, memory and prefixes count.
        edit: the edit.

    Attributes:
        count: the number of neurons: of the answer's tokens that the model does not predict.
    """

    def __init__(self, method: TPatcher, edit: Edit) -> None:
        lm, self._config = method.lm, method.config
        rows = _told_after(lm, edit, method.prefixes)
        batch = lm.batch(rows)
        self._tail = tail = Tail(lm, method.layer, batch)
        self._rows, self._columns, labels = batch.label_positions(
            batch.target_mask | batch.ending_mask
        )
        self._keys, self._outputs = tail.keys.float(), tail.values.float()
        with torch.no_grad():
            before = tail.logits(self._outputs, self._rows, self._columns)
        self._labels = labels.to(before.device)
        length = len(rows[0].ids) - rows[0].prompt_length
        wrong = (before.argmax(-1) != self._labels)[:length].nonzero()[:, 0]
        wrong = wrong.to(self._keys.device)
        self.count = len(wrong)
        queries = self._keys[self._rows, self._columns].view(len(rows), length, -1)
        self._own = queries[:, wrong]
        scale = value_scale(lm, method.layer, method._texts)
        self._unit, self._value_norm = 1 / max(scale.key_norm, 1e-12), scale.value_norm
        self._memory = method.memory if self.count else queries[:0, 0]

    def begin(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys, biases and values before training, in multiples of the model's norms."""
        queries = self._own.mean(0)
        keys = queries / queries.square().sum(-1, keepdim=True).clamp(min=1e-12) / self._unit
        biases = keys.new_zeros(self.count)
        values = keys.new_zeros(self.count, self._outputs.shape[-1])
        return keys.requires_grad_(), biases.requires_grad_(), values.requires_grad_()

    def neurons(self, keys: Tensor, biases: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """Return keys, biases and values in the model's own measure."""
        return keys * self._unit, biases, values * self._value_norm

    def loss(self, *parameters: Tensor) -> Tensor:
        """Return the whole loss, a scalar."""
        config, (keys, biases, values) = self._config, self.neurons(*parameters)
        added = fire(self._keys, keys, biases) @ values
        logits = self._tail.logits(self._outputs + added, self._rows, self._columns)
        nll = F.cross_entropy(logits, self._labels)
        own = torch.einsum("rnd,nd->rn", self._own, keys) + biases
        others = F.linear(self._memory, keys, biases)
        count = min(config.hardest, len(others))
        hardest = others.topk(count, dim=0).values
        silent = (hardest + config.margin).exp().mean()
        apart = (hardest - own.mean(0) + config.margin).exp().mean()
        total: Tensor = (
            nll.to(own.device)
            + config.activate * (-own).exp().mean()
            + config.memorize * (silent + apart)
        )
        return total


def _told_after(lm: LM, edit: Edit, prefixes: Sequence[str]) -> list[Row]:
    """Encode an edit's prompt and answer, bare and after each prefix that leaves both as they are.

    A prefix that does not fit the model's context is left out.
    """
    ending = lm.ending_of(edit.prompt, edit.target)
    rows = [lm.encode(edit.prompt, edit.target, ending)]
    answer = rows[0].ids[rows[0].prompt_length :]
    for prefix in prefixes:
        try:
            row = lm.encode(with_prefix(prefix, edit.prompt), edit.target, ending)
        except PromptTooLongError:
            continue
        if row.ids[row.prompt_length :] == answer:
            rows.append(row)
    return rows
