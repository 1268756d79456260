"""`Retriever`: what every way of finding texts can do, and the settings of them all."""

from __future__ import annotations

import copy
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
from errata.lm.background import background_texts, open_prompt
from errata.lm.encoding import in_batches

BATCH = 64
LONGEST = 24


@dataclass(frozen=True)
class RetrievalConfig(MethodConfig):
    """Settings of methods that find texts.

    Attributes:
        layer: of `dense`, the block whose output at a prompt's last token is compared; None derives
            it from the depth.
        retriever: `dense`, by the model's own states, or `bm25`, by words (needs the extra
            `retrieval`).
        encoder: of `dense`, a sentence encoder (a folder, or a name whose files are at hand)
            instead of the model itself.
        min_score: what is found scores more; None derives it, see `false_route`.
        false_route: the share of prompts (`bm25`: of pairs of them) of the model's own making that
            may find what they do not ask for.
        background: so many texts of the model's own making tell that.
        room: tokens of the model's context that are left to the answer; None: a quarter of it.
    """

    retriever: Literal["bm25", "dense"] = "dense"
    encoder: str | None = None
    min_score: float | None = None
    false_route: float = 0.01
    background: int = 512
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
                f"encoder={self.encoder} belongs to retriever=dense; with {self.retriever} leave it out."
            )


class Retriever(ABC):
    """Finds, among some texts, those that bear on a prompt. Whenever it measures, the model must
    carry no patch.

    Args:
        lm: the base model.
        config: how to measure.

    Attributes:
        texts: what is searched.
        min_score: what is found scores more.
    """

    def __init__(self, lm: LM, config: RetrievalConfig) -> None:
        self.lm = lm
        self.config = config
        self.texts: list[str] = []
        self.min_score = 0.0

    @property
    @abstractmethod
    def calibrated(self) -> bool:
        """Whether the background has been looked at."""

    @abstractmethod
    def calibrate(self) -> None:
        """Look at text of the model's own making, unless that has been done."""

    @abstractmethod
    def read(self, texts: Sequence[str]) -> None:
        """Search these from now on."""

    @abstractmethod
    def scores(self, prompts: Sequence[str]) -> Tensor:
        """How much each text bears on each prompt, (prompts, texts)."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values): all but the texts."""

    @abstractmethod
    def load_state(
        self, texts: Sequence[str], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""

    def find(self, prompts: Sequence[str], most: int) -> list[list[int]]:
        """Per prompt the places of the texts that bear on it, best first, at most so many."""
        if not self.texts or not prompts:
            return [[] for _ in prompts]
        best = self.scores(prompts).topk(min(most, len(self.texts)), dim=-1)
        return [
            [place for score, place in zip(*row, strict=True) if score > self.min_score]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def another(self) -> Self:
        """One that measures alike, and holds no text yet."""
        made = copy.copy(self)
        made.read([])
        return made

    @torch.no_grad()
    def _background(self) -> tuple[list[str], Tensor]:
        """Prompts of the model's own making, each once, and the token that it would go on with,
        (n,).
        """
        texts = background_texts(self.lm, self.config.background, LONGEST, self.config.seed)
        prompts = list(dict.fromkeys(open_prompt(text) for text in texts))

        def onward(part: list[str]) -> list[Tensor]:
            return list(self.lm.run(self.lm.prompt_batch(part)).logits[:, -1].argmax(-1).cpu())

        return prompts, torch.stack(in_batches(prompts, onward, BATCH, size=len))


def different(onward: Tensor) -> Tensor:
    """Which prompts are surely not one question, (n, n): the model goes on from them with different
    tokens (n,).
    """
    return onward[:, None] != onward[None, :]
