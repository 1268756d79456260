"""Find the texts that are relevant to a prompt: by hidden states (`Dense`) or by words (`BM25`).

A retriever must also know when nothing is relevant. It calibrates a minimum score on self-generated
prompts (see `lm/background.py`): two prompts that the model continues with different tokens are
different questions, yet have some similarity; what is found must score higher than that.

`KeyIndex` and `MaskIndex` are the nearest-neighbour searches of the side memories: over vectors
and over bit masks.
"""

from __future__ import annotations

from errata.lm import LM
from errata.retrieval.base import RetrievalConfig, Retriever
from errata.retrieval.bm25 import BM25
from errata.retrieval.dense import Dense

__all__ = ["BM25", "Dense", "RetrievalConfig", "Retriever", "retriever"]


def retriever(lm: LM, config: RetrievalConfig) -> Retriever:
    """Return the retriever that the settings name.

    Raises:
        ConfigError: a library or an encoder is missing, or there is no such layer.
    """
    return Dense(lm, config) if config.retriever == "dense" else BM25(lm, config)
