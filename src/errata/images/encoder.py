"""`TextEncoder`: one CLIP text encoder of a pipeline, as an editor sees it.

The output matrix of a block's MLP (`fc2`) is what edits change, or add to: W, (width, hidden).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.errors import ArchitectureError, ConfigError, EditError, quoted

Span = tuple[int, int]
"""The first and the last position of a subject's tokens."""
BEHIND = 8
"""Places of padding behind the end token that are read with it, of those that a pipeline adds."""


@dataclass(frozen=True)
class Encoded:
    """Texts as an encoder reads them.

    Attributes:
        ids: (texts, positions) token ids, with the tokenizer's padding after the end token.
        ends: (texts,) positions of the end token.
    """

    ids: Tensor
    ends: Tensor


class TextEncoder:
    """A CLIP text encoder with its tokenizer.

    Args:
        name: of the encoder in its pipeline, such as `text_encoder_2`.
        model: a `CLIPTextModel`, with or without a projection.
        tokenizer: its tokenizer.

    Raises:
        ArchitectureError: it is built otherwise than CLIP's.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self.model, self.tokenizer = name, model.eval().requires_grad_(False), tokenizer
        self.body = getattr(model, "text_model", model)
        blocks: Any = getattr(getattr(self.body, "encoder", None), "layers", None)
        self.blocks: Any = [] if blocks is None else blocks
        if not len(self.blocks) or not isinstance(
            getattr(getattr(self.blocks[0], "mlp", None), "fc2", None), nn.Linear
        ):
            raise ArchitectureError(
                f"{name} ({type(model).__name__}) is not built as CLIP's text encoder is; its "
                "blocks have no 'mlp.fc2' to write into."
            )
        self.length = int(model.config.max_position_embeddings)
        padding = tokenizer.pad_token_id
        self.padding = int(tokenizer.eos_token_id if padding is None else padding)
        self._starts: dict[int, bool] = {}

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def layer(self, wanted: int | None) -> int:
        """Return the block to edit: the wanted one, or three quarters of the way up.

        Raises:
            ConfigError: there is no such block.
        """
        last = self.depth - 2  # what the last block adds at the subject, no other place reads
        if wanted is None:  # as published: block 9 of 12
            return max(0, min(last, round(0.75 * self.depth)))
        if wanted > last:
            raise ConfigError(
                f"layer is {wanted}; {self.name} can be edited in the blocks 0 to {last}."
            )
        return wanted

    def matrix(self, layer: int) -> nn.Linear:
        """Return a block's output matrix."""
        found: nn.Linear = self.blocks[layer].mlp.fc2
        return found

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the texts' tokens, each cut at the encoder's length."""
        rows = [self.tokenizer(text, verbose=False)["input_ids"] for text in texts]
        rows = [
            row[: self.length - 1] + row[-1:] if len(row) > self.length else row for row in rows
        ]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.padding] * (width - len(row)) for row in rows])
        return Encoded(ids, torch.tensor([len(row) - 1 for row in rows]))

    def spans(self, ids: Sequence[int], subject: str) -> list[Span]:
        """Return where the words of a subject stand in a text's tokens."""
        wanted = self.tokenizer(subject, add_special_tokens=False, verbose=False)["input_ids"]
        size = len(wanted)
        return [
            (at, at + size - 1)
            for at in range(1, len(ids) - size + 1)
            if list(ids[at : at + size]) == wanted and self._ends_word(ids[at - 1])
        ]

    def _ends_word(self, token: int) -> bool:
        """Whether a word may begin after a token."""
        if token not in self._starts:
            special = token in self.tokenizer.all_special_ids
            text = str(self.tokenizer.convert_ids_to_tokens([token])[0])
            self._starts[token] = special or text.endswith("</w>")
        return self._starts[token]

    def last_of(self, encoded: Encoded, subject: str) -> Tensor:
        """Return the position of a subject's last token in each text, (texts,).

        Raises:
            EditError: it is not in one of them, or stands behind what the encoder reads.
        """
        places = []
        for ids, end in zip(encoded.ids.tolist(), encoded.ends.tolist(), strict=True):
            found = self.spans(ids[: end + 1], subject)
            if not found:
                raise EditError(
                    f"subject {quoted(subject)} is not among the tokens that {self.name} reads of "
                    f"the prompt; it reads {self.length}. Write it as a word of its own, nearer to "
                    "the start."
                )
            places.append(found[-1][1])
        return torch.tensor(places)

    def states(self, encoded: Encoded) -> Tensor:
        """Read texts.

        Returns:
            the states after the last block, normalised, at the end token and at the padding behind
            it, (texts, 1 + BEHIND, width); where a text leaves less room, the last again.
        """
        width = min(encoded.ids.shape[1] + BEHIND, self.length)
        ids = F.pad(encoded.ids, (0, width - encoded.ids.shape[1]), value=self.padding)
        states: Tensor = self.body(input_ids=ids.to(self.model.device)).last_hidden_state
        places = (encoded.ends[:, None] + torch.arange(1 + BEHIND)).clamp(max=width - 1)
        return states[torch.arange(len(states))[:, None], places]

    @torch.no_grad()
    def keys(self, encoded: Encoded, layer: int) -> Tensor:
        """Return a matrix's inputs, (texts, positions, hidden)."""
        seen: list[Tensor] = []
        handle = self.matrix(layer).register_forward_pre_hook(
            lambda _, given: seen.append(given[0])
        )
        try:
            self.body(input_ids=encoded.ids.to(self.model.device))
        finally:
            handle.remove()
        return seen[0]

    @torch.no_grad()
    def key_and_value(self, encoded: Encoded, layer: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean over texts of a matrix's input (hidden,) and output (width,) at a place.

        Args:
            places: (texts,), the place in each text.
        """
        key = self.keys(encoded, layer)[torch.arange(len(places)), places].float().mean(0)
        matrix = self.matrix(layer)
        return key, matrix(key.to(matrix.weight)).float()

    @contextlib.contextmanager
    def adding(self, layer: int, places: Tensor, delta: Tensor) -> Iterator[None]:
        """Add a vector (width,) to a matrix's output at one place of each text, meanwhile."""
        rows = torch.arange(len(places))

        def add(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            changed = out.clone()
            changed[rows, places] = changed[rows, places] + delta.to(out)
            return changed

        handle = self.matrix(layer).register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()
