"""SPALM over edits: at each token a gate weighs stored answers against the model's own state.

Yogatama et al., "Adaptive Semiparametric Language Models", TACL 2021, arXiv 2102.02557. With h the
state that the output head reads, and y_1 to y_k the output embeddings of the tokens that followed
the k nearest stored states: m = sum of softmax(y_i . h) y_i, g = sigmoid(w . h + b), and the head
reads (1 - g) m + g h.

What departs from the paper, where the store is a corpus, and the model is trained with it:

- The store is the edits' answers, with their ends. It is used only for prompts within `radius` of
  an edit's own, decided once for the whole answer, as in kNN-LM over edits; all else is the base
  model's, bit for bit.
- Only w and b are trained, on the whole ledger at each write: the NLL of the edits' answers, and of
  self-generated text, each token with its own neighbours, falls by Adam, in fp32, over the tokens
  that either h or m makes likeliest.
- Frozen embeddings are not trained to say themselves: the head gives the embedding of a token to
  another token in nine cases of ten in SmolLM2. So the y that are added up are embeddings times
  C^(-1/2), with C the second moment of all, at one length, and m is put to the length of h.
- k is 1 (there 4): distances do not count in m, so of several neighbours it follows the one that
  the model itself likes best, which is not the edit's.
- There is a bias b. The head itself is the model's own, whatever it does to its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.config import NonNegativeFloat, PositiveInt
from errata.edit import Edit
from errata.errors import ArchitectureError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.encoding import Batch
from errata.lm.hooks import tensor_of, with_output
from errata.lm.weights import read_weight
from errata.methods.answer_store_method import BATCH, AnswerStoreConfig, AnswerStoreMethod
from errata.methods.base import Progress, no_progress
from errata.patches.answer_store import AnswerStore
from errata.storage import state

LIKELIEST = 32
"""Tokens that each of h and m makes likeliest, and over which the gate is trained."""
RIDGE = 1e-6
"""Added to the second moment of the embeddings, as a share of its largest eigenvalue."""


@dataclass(frozen=True)
class SpalmConfig(AnswerStoreConfig):
    """Settings of SPALM over edits. `layer` does not matter: states are those of the output head.

    Attributes:
        neighbours: k, how many stored tokens m is made of.
        steps: Adam steps of the gate, at each write and undo.
        lr: Adam's learning rate.
        weight_decay: of w, which keeps the gate's slopes small.
    """

    method: ClassVar[str] = "spalm"

    neighbours: PositiveInt = 1
    steps: PositiveInt = 200
    lr: NonNegativeFloat = 0.05
    weight_decay: NonNegativeFloat = 1e-3


class GatedAnswers(AnswerStore):
    """A store whose tokens a gate weighs against the model's own state.

    Args:
        lm: the base model; nothing is installed on it yet.
        radius: how far a prompt may be from a stored one for the store to be used.
        neighbours: k, how many stored tokens m is made of.

    Attributes:
        gate: w, and b behind it, (hidden + 1,) in fp32; None: not trained, and h stays as it is.

    Raises:
        ArchitectureError: the head is not a matrix of floats that reads the model's states.
    """

    def __init__(self, lm: LM, radius: float, neighbours: int) -> None:
        self._head = lm.architecture.head_module(lm.model)
        self._body = lm.architecture.body_module(lm.model)
        weight, width = read_weight(self._head), lm.architecture.hidden_size
        if weight.shape[1] != width:
            raise ArchitectureError(
                f"the output head of this {lm.architecture.model_type} reads {weight.shape[1]} "
                f"numbers and its blocks write {width}; spalm mixes what both are. Take knn-lm, "
                "which mixes their predictions."
            )
        super().__init__(lm, width, weight.device, radius, neighbours)
        self.gate: Tensor | None = None

    @cached_property
    def _whitening(self) -> Tensor:
        """C^(-1/2) of the output embeddings, (hidden, hidden) in fp32."""
        weight = read_weight(self._head)
        moment = weight.new_zeros(self._width, self._width, dtype=torch.float64)
        for part in torch.split(weight, 1 << 14):
            moment += (part.float().t() @ part.float()).double()
        values, directions = torch.linalg.eigh(moment / len(weight))
        values = values.clamp(min=0) + RIDGE * values.max()
        whitening: Tensor = directions * values.rsqrt() @ directions.t()
        return whitening.float()

    def remembered(self, states: Tensor) -> Tensor:
        """Return m, (n, hidden) in fp32 and as long as the states, for states (n, hidden)."""
        embeddings = read_weight(self._head)[self.nearest(states)[1]].float()
        liked = torch.einsum("nkd,nd->nk", embeddings, states).softmax(-1)
        white = F.normalize(embeddings @ self._whitening, dim=-1)
        said = torch.einsum("nk,nkd->nd", liked, white)
        lengths: Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        return F.normalize(said, dim=-1) * lengths

    def mix(self, states: Tensor) -> Tensor:
        """Return (1 - g) m + g h for states h, (n, hidden)."""
        own = states.float()
        if self.gate is None:
            return states
        opened = (own @ self.gate[:-1] + self.gate[-1]).sigmoid()[:, None]
        return torch.lerp(self.remembered(own), own, opened).to(states.dtype)

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self.gate = None

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        return [self._body.register_forward_hook(self._after_body)]

    def _after_body(self, body: nn.Module, _: tuple[Tensor, ...], output: Any) -> Any:
        now, states = self._pass, tensor_of(body, output)
        if now is None or not self._choose(now, states):
            return None
        tokens = self._answer_tokens(now).to(states.device)
        mixed = states.clone()
        mixed[tokens] = self.mix(states[tokens])
        return with_output(output, mixed)


class Spalm(AnswerStoreMethod):
    """SPALM over edits: near an edited prompt, a gate weighs stored tokens against the model."""

    config_class = SpalmConfig
    phase = "association"
    undo_is = "exact, by deleting the edit's states and training the gate anew"
    paper = "arXiv 2102.02557"
    config: SpalmConfig

    def __init__(self, config: SpalmConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self._patch = GatedAnswers(lm, math.nan, config.neighbours)

    @property
    def patch(self) -> GatedAnswers:
        """The store and its gate."""
        return self._patch

    @property
    def relearns_all(self) -> bool:
        """Whether each write learns the whole ledger anew: the gate does."""
        return True

    def contexts(self, batch: Batch) -> Tensor:
        """Return the head's inputs, (batch, width, hidden)."""
        return self.lm.run_body(batch).float()

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, by a forward pass each, and train the gate on all."""
        with self.all_or_nothing():
            super().write(edits, progress)
            self._train_gate()

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Remove edits, and train the gate on those that are left.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
        """
        with self.all_or_nothing():
            super().undo(edit_ids)
            self._train_gate()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return states (n, hidden) and tokens (n,) of all edits, gate (hidden + 1,); radius."""
        tensors, values = super().state()
        gate = self._patch.gate
        return tensors | ({} if gate is None else {"gate": gate.cpu()}), values

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        super().load_state(edits, tensors, values)
        if edits:
            width = self.lm.architecture.hidden_size + 1
            gate = state.tensor(tensors, "gate", (width,)).float()
            self._patch.gate = gate.to(self._patch.prompts.device)

    @cached_property
    def _background(self) -> tuple[Tensor, Tensor]:
        """States (n, hidden) of self-generated text and the tokens (n,) that follow them."""
        texts = background_texts(self.lm, self.config.background, seed=self.config.seed)
        texts = [text for text in texts if text.strip()] or ["x"]
        states, tokens = [], []
        for start in range(0, len(texts), BATCH):
            batch = self.lm.prompt_batch(texts[start : start + BATCH])
            follows = batch.prompt_mask.clone()
            follows[:, 1:] &= batch.prompt_mask[:, :-1]
            follows[:, 0] = False
            rows, columns, labels = batch.label_positions(follows)
            states.append(self.contexts(batch)[rows, columns])
            tokens.append(labels)
        return torch.cat(states), torch.cat(tokens)

    def _train_gate(self) -> None:
        """Train the gate on the ledger, from its beginning."""
        self._patch.gate = None
        if not self._edits:
            return
        tensors = self._patch.state()
        device = self._patch.prompts.device
        others, follow = self._background
        counting = tensors["silenced_by"] < 0
        stored, tokens = (tensors[name][counting] for name in ("contexts", "tokens"))
        states = torch.cat([stored.to(device), others.to(device)])
        labels = torch.cat([tokens.to(device), follow.to(device)])
        count = len(states) - len(others)
        shares = torch.cat([
            states.new_full((count,), 0.5 / count),
            states.new_full((len(others),), 0.5 / max(len(others), 1)),
        ])  # fmt: skip
        memory, own, places = self._logits(states, labels)
        mean, spread = states.mean(0), states.std(0, correction=0).clamp(min=1e-6)
        inputs = F.pad((states - mean) / spread, (0, 1), value=1.0)
        gate = torch.zeros(inputs.shape[1], device=device, requires_grad=True)
        adam = torch.optim.Adam([gate], lr=self.config.lr)
        for _ in range(self.config.steps):
            opened = (inputs @ gate).sigmoid()[:, None]
            nll = F.cross_entropy(torch.lerp(memory, own, opened), places, reduction="none")
            loss = (nll * shares).sum() + self.config.weight_decay * gate[:-1].square().sum()
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        slopes = gate.detach()[:-1] / spread
        self._patch.gate = torch.cat([slopes, gate.detach()[-1:] - (slopes @ mean)[None]])

    @torch.no_grad()
    def _logits(self, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the head's output for m and for h, over few tokens, and the labels' places there.

        Args:
            states: h, (n, hidden).
            labels: (n,), the tokens that follow.

        Returns:
            (n, tokens) twice, and (n,): a label is the first of its row's tokens.
        """
        head, dtype = self._patch._head, self.lm.model.dtype
        found = []
        for part, wanted in zip(
            torch.split(states, BATCH), torch.split(labels, BATCH), strict=True
        ):
            both = [head.forward(each.to(dtype)).float() for each in
                    (self._patch.remembered(part), part)]  # fmt: skip
            count = min(LIKELIEST, both[0].shape[-1])
            likely = torch.cat([each.topk(count).indices for each in both], -1)
            tokens = torch.cat([wanted[:, None], likely], -1)
            repeated = torch.zeros_like(tokens, dtype=torch.bool)
            ordered, order = tokens.sort(dim=-1, stable=True)
            repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
            found.append([
                each.gather(1, tokens).masked_fill(repeated, -1e9) for each in both
            ])  # fmt: skip
        memory, own = (torch.cat(each) for each in zip(*found, strict=True))
        return memory, own, torch.zeros_like(labels)
