"""Find the texts that bear on a prompt: by how a model reads them (`Dense`), or by the words they
share (`BM25`).

Both must also know when to find nothing. What tells them is text of the model's own making (see
`statistics.py`): of two such prompts that the model would go on from differently, neither bears on
the other, and yet they are alike to some degree. What is found must be more alike than that.
Nothing here knows what the texts are for.
"""

from __future__ import annotations

from errata.lm import LM
from errata.retrieval.base import RetrievalConfig, Retriever
from errata.retrieval.bm25 import BM25
from errata.retrieval.dense import Dense

__all__ = ["BM25", "Dense", "RetrievalConfig", "Retriever", "retriever"]


def retriever(lm: LM, config: RetrievalConfig) -> Retriever:
    """The retriever that the settings ask for.

    Raises:
        ConfigError: a library or an encoder is missing, or there is no such layer.
    """
    return Dense(lm, config) if config.retriever == "dense" else BM25(lm, config)
