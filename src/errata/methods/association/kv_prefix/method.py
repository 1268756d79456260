"""Facts as key-value prefixes: what the model computed for an edit's sentence, read again.

Retrieval in the middle of the model, without training: an edit is read once, when it is written,
and its keys and values are kept; a retriever puts those of the relevant edits in front of a prompt,
and the model attends to them. Lu et al., "TurboRAG: Accelerating Retrieval-Augmented Generation
with Precomputed KV Caches for Chunked Text", arXiv 2410.07590; for the positions of several texts,
"Parallel Context Windows for Large Language Models", arXiv 2212.10947 (see `patch`).

What departs: the model is not trained to read texts that do not attend to each other; where no edit
is relevant the base model answers; in a conversation the facts stand in the user's first turn,
since what stands before a key would have changed it.

With one fact this is exactly what `rag` reads with the same words in front of a prompt, in a chat
template or without, but for the pass over them; see `rag` for several, or for conversations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from errata.config import PositiveInt
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.association.kv_prefix.patch import KeyValuePrefix
from errata.methods.association.kv_prefix.prefix import (
    Opening,
    Prefix,
    opening_of,
    read_opening,
    read_prefix,
)
from errata.methods.base import Progress, no_progress
from errata.methods.fact_method import FactMethod, fact_text
from errata.retrieval import RetrievalConfig
from errata.storage import state

MOST_TOKENS = 1_000_000
"""Of one fact that is read from a file; no context is longer."""


@dataclass(frozen=True)
class KvPrefixConfig(RetrievalConfig):
    """Settings of key-value prefixes; those of the retriever are described in `RetrievalConfig`.

    Attributes:
        passages: the most facts that are put in front of a prompt.
        passage: the text of one; {fact} is the edit's prompt and target.
    """

    method: ClassVar[str] = "kv-prefix"

    passages: PositiveInt = 1
    passage: str = "New Fact: {fact}.\nPrompt: "

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{fact}" not in self.passage:
            raise ConfigError(
                f"passage is {self.passage!r}; it must say where the {{fact}} stands."
            )


class KvPrefix(FactMethod):
    """Puts the keys and values of relevant edits in front of a prompt."""

    config_class = KvPrefixConfig
    phase = "association"
    undo_is = "exact, by taking the edit's keys and values out"
    paper = "arXiv 2410.07590"
    config: KvPrefixConfig

    def __init__(self, config: KvPrefixConfig, lm: LM) -> None:
        super().__init__(config, lm, config.passages)
        self._patch: KeyValuePrefix = KeyValuePrefix(self._read, room=config.room)

    @property
    def patch(self) -> KeyValuePrefix:
        """Puts keys and values in front of prompts."""
        return self._patch

    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """Return the facts' ids."""
        return tuple(fact.id for fact in facts)

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Read edits, and add them to the store.

        Raises:
            ConfigError: the model does not keep keys and values of each token.
        """
        self.retriever.calibrate()
        if not self._edits:  # the others are behind what prompts began with then
            usual = opening_of(self.lm, self.lm.encode_prompt("x"))
            self._patch.opening = read_opening(self.lm, usual)
        for edit in edits:
            prefix = read_prefix(self.lm, self._passage(edit), self._patch.opening)
            self._patch.prefixes = {**self._patch.prefixes, edit.id: prefix}
            self._store([*self._edits, edit])
            progress(1)

    def _passage(self, edit: Edit) -> str:
        return self.config.passage.replace("{fact}", fact_text(edit))

    def _read(self, edit_id: str, opening: Opening) -> Prefix:
        """Return the prefix of an edit behind another opening than the usual one."""
        edit = next(each for each in self._edits if each.id == edit_id)
        return read_prefix(self.lm, self._passage(edit), opening)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the retriever's state, the opening's tokens, and keys and values (heads, tokens,
        head width) of each layer, all edits' in a row.
        """
        tensors, values = super().state()
        kept = [self._patch.prefixes[edit.id] for edit in self._edits]
        if kept:
            for kind in ("keys", "values"):
                layers = zip(*(getattr(prefix, kind) for prefix in kept), strict=True)
                tensors |= {
                    f"{kind}.{layer}": torch.cat(parts, dim=1) for layer, parts in enumerate(layers)
                }
            tensors["tokens"] = torch.tensor([prefix.length for prefix in kept])
            tensors["opening"] = torch.tensor(self._patch.opening.ids, dtype=torch.int64)
        return tensors, values

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        prefixes, opening = dict[str, Prefix](), Opening()
        if edits:
            opening = self._stored_opening(tensors)
            like = read_prefix(self.lm, "x", opening)
            lengths = state.numbers(tensors, "tokens", len(edits), 1, MOST_TOKENS)
            parts = []
            for kind in ("keys", "values"):
                layers = []
                for layer, one in enumerate(getattr(like, kind)):
                    shape = (one.shape[0], sum(lengths), one.shape[2])
                    stored = state.tensor(tensors, f"{kind}.{layer}", shape).float()
                    layers.append(torch.split(stored, lengths, dim=1))
                parts.append(zip(*layers, strict=True))
            for edit, keys, read in zip(edits, *parts, strict=True):
                prefixes[edit.id] = Prefix(keys, read)
        super().load_state(edits, tensors, values)
        self._patch.prefixes, self._patch.opening = prefixes, opening

    def _stored_opening(self, tensors: Mapping[str, Tensor]) -> Opening:
        """Return what the edits were read behind; by now prompts may begin with another date."""
        most = self.lm.model.get_input_embeddings().num_embeddings - 1
        ids = state.numbers(tensors, "opening", None, 0, most)
        if self.lm.context_length and len(ids) >= self.lm.context_length:
            raise ValueError(f"'opening' has {len(ids)} tokens, more than the model reads")
        text = str(self.lm.tokenizer.decode(ids)) if self.lm.template else ""
        return read_opening(self.lm, Opening(tuple(ids), text))

    def _store(self, edits: list[Edit]) -> None:
        """Replace all edits; what was read of others is forgotten."""
        super()._store(edits)
        self._patch.prefixes = {edit.id: self._patch.prefixes[edit.id] for edit in edits}
