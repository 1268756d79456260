"""RAG at the input: the edits are passages, and the relevant ones are put before the prompt.

Lewis et al., arXiv 2005.11401, in its plainest form: the best `passages` are joined, the best one
nearest to the prompt, and the model reads them. What departs: the model is not trained to read,
there is one pass over all passages instead of a mixture of passes (RAG-Sequence, REPLUG), and where
no passage is relevant the base model answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from errata.config import PositiveInt
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.fact_method import FactMethod, fact_text
from errata.retrieval import RetrievalConfig


@dataclass(frozen=True)
class RagConfig(RetrievalConfig):
    """Settings of RAG; those of the retriever are described in `RetrievalConfig`.

    Attributes:
        passages: the most passages that are put in front of a prompt.
        passage: the text of one; {fact} is the edit's prompt and target.
        question: text between the passages and the prompt.
    """

    method: ClassVar[str] = "rag"

    passages: PositiveInt = 4
    passage: str = "New Fact: {fact}.\n"
    question: str = "Prompt: "

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{fact}" not in self.passage:
            raise ConfigError(
                f"passage is {self.passage!r}; it must say where the {{fact}} stands."
            )


class Rag(FactMethod):
    """Puts the edits that are relevant to a prompt in front of it."""

    config_class = RagConfig
    paper = "arXiv 2005.11401"
    config: RagConfig

    def __init__(self, config: RagConfig, lm: LM) -> None:
        super().__init__(config, lm, config.passages)

    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """Return a passage per fact, then the words before the prompt."""
        *others, best = (self.config.passage.replace("{fact}", fact_text(fact)) for fact in facts)
        return (*others, best + self.config.question)
