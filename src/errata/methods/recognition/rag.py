"""RAG at the input: the edits are a store of passages, and those that bear on a prompt are put in
front of it.

Lewis et al., arXiv 2005.11401, in its plainest form: the `passages` best are joined, the best one
nearest to the prompt, and the model reads. What departs: the model is not trained to read, there is
one pass over all passages instead of a mixture of passes (RAG-Sequence, REPLUG), and where no
passage bears on the prompt there is none, so that the base model answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from errata.config import check_range
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.fact_method import FactMethod, stated
from errata.retrieval import RetrievalConfig


@dataclass(frozen=True)
class RagConfig(RetrievalConfig):
    """Settings of RAG; those of the retriever are told in `RetrievalConfig`.

    Attributes:
        passages: so many are put in front of a prompt, at most.
        passage: one of them; {fact} is the edit's prompt and target.
        question: what stands between the passages and the prompt.
    """

    method: ClassVar[str] = "rag"

    passages: int = 4
    passage: str = "New Fact: {fact}.\n"
    question: str = "Prompt: "

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("passages", self.passages, 1, math.inf)
        if "{fact}" not in self.passage:
            raise ConfigError(
                f"passage is {self.passage!r}; it must say where the {{fact}} stands."
            )


class Rag(FactMethod):
    """Retrieval-augmented generation over the edits."""

    config_class = RagConfig
    paper = "arXiv 2005.11401"
    config: RagConfig

    def __init__(self, config: RagConfig, lm: LM) -> None:
        super().__init__(config, lm, config.passages)

    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """A passage a fact, then the words before the prompt."""
        *others, best = (self.config.passage.replace("{fact}", stated(fact)) for fact in facts)
        return (*others, best + self.config.question)
