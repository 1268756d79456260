"""Settings of MemoryLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from errata.config import NonNegativeFloat, NonNegativeInt, PositiveInt, Range
from errata.errors import ConfigError
from errata.methods.editor_training import EditorTrainingConfig


@dataclass(frozen=True)
class MemoryLlmConfig(EditorTrainingConfig):
    """Settings of MemoryLLM; more are described in `EditorTrainingConfig`.

    Attributes:
        memory_tokens: N, vectors of the memory at each block (published: 7,680 and 12,800).
        new_tokens: K, vectors that an edit becomes, for which as many others are dropped
            (published: 256); the share K / N is what the memory forgets at each edit.
        written: what becomes a block's vectors: `outputs`, what the block makes (as published), or
            `inputs`, what it reads, which is what its attention knows how to read without training.
        recalled_tokens: dropped vectors that are brought back for a prompt at each block, by a
            trained retriever; 0: they are gone (MemoryLLM), else they are kept (M+).
        retriever_width: of the retriever's queries and keys.
        rank: r of the adapters on all linear modules of the blocks.
        alpha: their change is scaled by alpha / r.
        contexts: texts that a step of training writes into the memory, at most; their number grows
            to it, and in half of all steps it is one, as published.
        asked: of these, how many are asked for in a step.
        lr: Adam's learning rate.
        batch: such rounds per step.
        locality_weight: of the divergence from the base model on other prompts.
        checkpoint: a folder of the published layout, which is taken as it is, without training.
    """

    method: ClassVar[str] = "memoryllm"

    memory_tokens: PositiveInt = 240
    new_tokens: PositiveInt = 8
    written: Literal["outputs", "inputs"] = "outputs"
    recalled_tokens: NonNegativeInt = 0
    retriever_width: PositiveInt = 64
    rank: PositiveInt = 8
    alpha: Annotated[float, Range(1e-6)] = 32.0
    contexts: PositiveInt = 20
    asked: PositiveInt = 8
    training_steps: PositiveInt = 1000
    batch: PositiveInt = 1
    clip: NonNegativeFloat = 1.0
    lr: NonNegativeFloat = 1e-4
    locality_weight: NonNegativeFloat = 1.0
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new_tokens > self.memory_tokens:
            raise ConfigError(
                f"new_tokens is {self.new_tokens} and memory_tokens {self.memory_tokens}; an edit "
                "cannot become more vectors than the memory has."
            )
