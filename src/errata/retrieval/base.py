"""`Retriever`: the interface of all retrievers, with their settings and their calibration text."""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from errata.config import MethodConfig, check_choice, check_range
from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.background import background_texts, key_of, open_prompt
from errata.lm.encoding import in_batches
from errata.lm.hooks import capture_output
from errata.storage.cache import cached

BATCH = 64


@dataclass(frozen=True)
class RetrievalConfig(MethodConfig):
    """Settings of methods that retrieve texts.

    Attributes:
        layer: of `dense`, the block whose output at a prompt's last token is compared; None derives
            it from the depth.
        retriever: `dense`, by hidden states, or `bm25`, by words (needs the extra `retrieval`).
        encoder: of `dense`, a sentence encoder (a folder, or a name whose files are at hand)
            instead of the model itself.
        min_score: a text is found if it scores higher; None calibrates it, see `false_route`.
        false_route: share of self-generated prompts (`bm25`: of pairs of them) that may find a
            different question.
        background: self-generated texts to calibrate on.
        room: tokens of the model's context that are left to the answer; None: a quarter of it.
    """

    retriever: Literal["bm25", "dense"] = "dense"
    encoder: str | None = None
    min_score: float | None = None
    false_route: float = 0.03
    background: int = 256
    room: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("retriever", self.retriever, ("bm25", "dense"))
        check_range("false_route", self.false_route, 0, 1)
        check_range("background", self.background, 2, math.inf)
        if self.room is not None:
            check_range("room", self.room, 1, math.inf)
        if self.encoder is not None and self.retriever != "dense":
            raise ConfigError(
                f"encoder={self.encoder} belongs to retriever=dense; "
                f"with {self.retriever} leave it out."
            )


class Retriever(ABC):
    """Finds the texts that are relevant to a prompt.

    The model must carry no patch when it is called.

    Args:
        lm: the base model.
        config: the settings.

    Attributes:
        texts: the texts that are searched.
        min_score: a text is found if it scores higher.
    """

    def __init__(self, lm: LM, config: RetrievalConfig) -> None:
        self.lm = lm
        self.config = config
        self.texts: list[str] = []
        self.min_score = 0.0

    @property
    @abstractmethod
    def calibrated(self) -> bool:
        """Whether `calibrate` has been done."""

    @abstractmethod
    def calibrate(self) -> None:
        """Generate background prompts and calibrate on them, unless that has been done."""

    @abstractmethod
    def index(self, texts: Sequence[str]) -> None:
        """Search these texts from now on, and no others."""

    @abstractmethod
    def scores(self, prompts: Sequence[str]) -> Tensor:
        """Return the relevance of each text to each prompt, (prompts, texts) in fp32."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors, plain values): all but the texts."""

    @abstractmethod
    def load_state(
        self, texts: Sequence[str], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state()` and the texts.

        Raises:
            KeyError, ValueError: something is missing or of the wrong shape.
        """

    def find(self, prompts: Sequence[str], k: int) -> list[list[int]]:
        """Return, for each prompt, the places in `texts` of up to k relevant texts, best first."""
        if not self.texts or not prompts:
            return [[] for _ in prompts]
        best = self.scores(prompts).topk(min(k, len(self.texts)), dim=-1)
        return [
            [place for score, place in zip(*row, strict=True) if score > self.min_score]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def empty_copy(self) -> Self:
        """Return a retriever of the same calibration, without texts."""
        new = copy.copy(self)
        new.index([])
        return new

    @torch.no_grad()
    def _background(self, layer: int) -> tuple[list[str], Tensor, Tensor]:
        """Return distinct self-generated prompts, and what the model makes of each, kept on disk.

        Returns:
            The prompts; the model's next token for each, (n,); the output of block `layer` at each
            one's last token, (n, hidden) in fp32.
        """
        texts = background_texts(self.lm, self.config.background, seed=self.config.seed)
        prompts = list(dict.fromkeys(open_prompt(text) for text in texts))
        block = self.lm.architecture.block(self.lm.model, layer)

        def states_and_next(part: list[str]) -> list[Tensor]:
            batch = self.lm.prompt_batch(part)
            with capture_output(block) as outputs:
                tokens = self.lm.run(batch, keep=1).logits[:, -1].argmax(-1)
            states = outputs[0].reshape(*batch.input_ids.shape, -1)[:, -1].double()
            return list(torch.cat([states, tokens[:, None].to(states)], dim=1).cpu())

        key = f"{key_of(self.lm)} {layer} {json.dumps(prompts)}"
        both = cached(
            "states",
            key,
            lambda: torch.stack(in_batches(prompts, states_and_next, BATCH, size=len)),
            self.lm.name,
        )
        return prompts, both[:, -1].long(), both[:, :-1].float().to(self.lm.device)


def different_questions(next_tokens: Tensor) -> Tensor:
    """Mark the pairs of prompts that the model continues with different tokens.

    Args:
        next_tokens: (n,), the model's next token for each prompt.

    Returns:
        (n, n), bool.
    """
    return next_tokens[:, None] != next_tokens[None, :]
