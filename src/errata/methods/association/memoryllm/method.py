"""MemoryLLM: every layer attends to memory vectors, and a text is written into them by reading it.

Wang et al., "MemoryLLM: Towards Self-Updatable Large Language Models", arXiv 2402.04624. Each block
has N memory vectors in front of the text's hidden states. An edit's text is read with the last K of
them in front; the last K hidden states that each block makes become its new vectors, for which K
old ones drawn at random make room, the others stay as they are. After t further edits a vector is
still there with probability (1 - K / N)^t. How to write and read is trained once, by `prepare`.

M+ (arXiv 2502.00592): what is dropped goes to a store on the CPU; for each prompt a trained
retriever brings the best of it back, at each block, in front of the memory.

What departs from the papers: all that is trained are adapters, on every linear module of the
blocks, and a few vectors, on examples of edits and not on a corpus; a loss keeps other answers; a
step's texts are written side by side, not one behind another. An edit's text is its prompt, target
and ending, as the model would say it, of any length, with the tokenizer's first token, which
released checkpoints have not seen behind a memory. For the rest of M+ see `retriever.py`. Before
the first edit the model is the base model.

What follows from the design: as many old edits are forgotten as new ones come in; nothing is ever
full.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from errata.edit import Edit, Example
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.methods.association.memoryllm.checkpoint import Checkpoint
from errata.methods.association.memoryllm.config import MemoryLlmConfig
from errata.methods.association.memoryllm.learning import Learning
from errata.methods.association.memoryllm.network import MemoryNetwork
from errata.methods.association.memoryllm.pool import Pool
from errata.methods.base import Method, Progress, no_progress
from errata.methods.editor_training import EditorTraining, check_examples
from errata.patches import Patch, WeightDelta
from errata.patches.virtual_tokens import room_for
from errata.storage import state

REFILL = 10
"""Steps of training for which a memory of background text is kept."""


class MemoryLlm(Method):
    """Memory vectors at every block, which the model writes by reading the edits."""

    config_class = MemoryLlmConfig
    phase = "association"
    undo_is = "exact, by reading all other edits anew: one short forward pass each"
    shares_rows = False
    paper = "arXiv 2402.04624"
    variants = MappingProxyType({"mplus": {"recalled_tokens": 60}})
    needs_training = True
    config: MemoryLlmConfig

    def __init__(self, config: MemoryLlmConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self._network: MemoryNetwork | None = None
        self._trained_pool: Pool | None = None
        self._filled_at = -1
        self._pool: Pool | None = None
        self._patch: Patch = WeightDelta({})

    @property
    def _shape(self) -> tuple[int, int, int]:
        """The shape of the memory, (layers, N, hidden)."""
        architecture = self.lm.architecture
        return architecture.n_layers, self.config.memory_tokens, architecture.hidden_size

    # training

    @property
    def network(self) -> MemoryNetwork:
        """What reads and writes the memory; untrained until `prepare` or `load_state`.

        Raises:
            ConfigError: the checkpoint cannot be read, or is of another model or other settings.
        """
        if self._network is not None:
            return self._network
        network = MemoryNetwork(self.lm, self.config)
        if self.config.checkpoint is not None:
            checkpoint = Checkpoint(self.config.checkpoint)
            checkpoint.check(self.lm, self.config)
            network.load_state(checkpoint.parameters(network.parameters))
            self._trained_pool = checkpoint.pool(*self._shape)
        self._network = network
        return network

    @cached_property
    def training(self) -> EditorTraining:
        """The training of the network."""
        parameters = self.network.parameters
        return EditorTraining(parameters, dict.fromkeys(parameters, self.config.lr), self.config)

    @property
    def steps_left(self) -> int:
        """Training steps still to be made; a checkpoint wants none."""
        return self.training.steps_left if self.config.checkpoint is None else 0

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Train the network, from where training stopped, then fill the memory.

        Raises:
            EditError: there are no examples, or one lacks rephrases or other prompts.
            ConfigError: the training was begun with other examples.
        """
        check_examples("memoryllm", examples, "rephrases", "others")
        if not self.steps_left:
            return
        learning = Learning(self.lm, self.network, examples)

        def loss(example: Example, rng: random.Random) -> Tensor:
            done = self.training.steps_made / self.config.training_steps
            return learning.loss(example, rng, self._training_pool().vectors, done)

        with self.network.trainable():
            self.training.run(examples, loss, progress)
        self._trained_pool = self.network.filled()

    def _training_pool(self) -> Pool:
        """The memory that examples are written into; filled anew every `REFILL` steps."""
        step = self.training.steps_made
        if self._trained_pool is None or (step % REFILL == 0 and self._filled_at != step):
            self._trained_pool, self._filled_at = self.network.filled(), step
        return self._trained_pool

    # editing

    @property
    def pool(self) -> Pool:
        """The memory with all edits."""
        return self._filled if self._pool is None else self._pool

    @property
    def _filled(self) -> Pool:
        """The memory before any edit, by the network as trained."""
        network = self.network  # with a checkpoint it comes with a memory
        if self._trained_pool is None:
            self._trained_pool = network.filled()
        return self._trained_pool

    @property
    def patch(self) -> Patch:
        """The memory; a patch that changes nothing before the first edit."""
        return self._patch

    def check(self, edits: Sequence[Edit]) -> None:
        """Check that edits can be written.

        Raises:
            PromptTooLongError: an edit leaves no room for the memory, on a model that counts it.
        """
        super().check(edits)
        config, limit = self.config, self.lm.context_length
        room = room_for(self.lm, 1 + config.memory_tokens + config.recalled_tokens)
        for edit in edits if room and limit else ():
            if (length := len(self.lm.encode(edit.prompt, edit.target, ".").ids)) + room > limit:
                raise PromptTooLongError(
                    f"the prompt {edit.prompt[:40]!r} with its answer takes {length} tokens and "
                    f"the memory {room} more; this model's context is {limit}. Shorten the prompt, "
                    "or give fewer memory_tokens."
                )

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, one after another."""
        try:
            for edit in edits:
                new = self.network.written(self.encode(edit), self.pool)
                keep_dropped = bool(self.config.recalled_tokens)
                draw = self._draw_of(edit, len(self._edits))
                self._pool = self.pool.updated(new, draw, keep_dropped)
                self._edits.append(edit)
                progress(1)
        finally:
            self._refresh()

    def clear(self) -> None:
        """Forget all edits; what was trained stays."""
        self._edits, self._pool = [], None
        self._refresh()

    def _draw_of(self, edit: Edit, place: int) -> torch.Generator:
        """Return the generator that draws what an edit drops."""
        text = f"{self.config.seed} {place} {edit.prompt} {edit.target}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return torch.Generator().manual_seed(seed)

    def _refresh(self) -> None:
        """Make the patch anew."""
        self._patch = WeightDelta({})
        if self._edits:
            with torch.no_grad():
                self._patch = self.network.tokens(self.pool.vectors, self.pool.dropped)

    # saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what was trained, the memory before and after the edits, and the training."""
        moments, progress = self.training.state()
        tensors = {**self.network.state(), **moments}
        filled = self._filled if self.prepared else self._trained_pool
        if filled is not None:
            tensors |= {"filled": filled.vectors.clone(), "filled_dropped": filled.dropped.clone()}
        if self._edits:
            tensors |= {"memory": self.pool.vectors, "dropped": self.pool.dropped}
        return tensors, progress

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state()`."""
        if self._network is None:  # what a checkpoint has is in the state
            self._network = MemoryNetwork(self.lm, self.config)
        filled = self._stored(tensors, "filled", "filled_dropped") if "filled" in tensors else None
        pool = None
        if edits:
            pool = self._stored(tensors, "memory", "dropped")
            before = 0 if filled is None else filled.dropped.shape[1]
            each = self.config.new_tokens if self.config.recalled_tokens else 0
            if pool.dropped.shape[1] != before + len(edits) * each:
                raise ValueError(f"'dropped' does not hold what {len(edits)} edits dropped")
        self.network.load_state(tensors)
        self.training.load_state(tensors, values)
        if edits and (filled is None or not self.prepared):
            raise ValueError("there are edits, and training has not come to its end")
        self._trained_pool, self._pool, self._edits = filled, pool, list(edits)
        self._refresh()

    def _stored(self, tensors: Mapping[str, Tensor], vectors: str, dropped: str) -> Pool:
        """Read a memory from a state."""
        layers, _, hidden = self._shape
        return Pool(
            state.tensor(tensors, vectors, self._shape).float().clone(),
            state.tensor(tensors, dropped, (layers, None, hidden)).float().clone(),
        )
