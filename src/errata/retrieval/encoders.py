"""Sentence encoders: models that are made to tell which texts mean alike. Nothing is downloaded.

Most, as MiniLM, Contriever and E5, are a transformer whose states are averaged: transformers reads
these. Any other (other pooling, layers behind it) says so in its `modules.json`, and is left to the
library sentence-transformers, the extra `encoders`. Which of the two reads an encoder depends on
its files alone, so it means the same by a text wherever it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file

from errata.errors import ConfigError

Encoder = Callable[[Sequence[str]], Tensor]
"""Texts -> their vectors, (texts, width) in fp32."""

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_AVERAGED = {"Transformer", "Pooling", "Normalize"}
"""The modules of an encoder that averages."""


def sentence_encoder(name: str) -> Encoder:
    """Return the encoder in a folder, or of a name whose files are in the local cache.

    Raises:
        ConfigError: there are no such files here, or they need a library that is not installed.
    """
    try:
        return _averaging(name) if _averages(name) else _of_library(name)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = (
            "cannot be read"
            if Path(name).exists()
            else "is not here, and nothing is downloaded for it"
        )
        raise ConfigError(
            f"encoder={name} {problem}; give the folder of a sentence encoder, or leave it out."
        ) from error


def _averages(name: str) -> bool:
    """Return whether an encoder's files say that it averages states, or do not say anything."""
    modules = _json(name, "modules.json")
    if modules is None:
        return True
    kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    pooling = _json(name, f"{kinds.get('Pooling', '1_Pooling')}/config.json") or {}
    modes = {key for key, on in pooling.items() if key.startswith("pooling_mode_") and on is True}
    averaged = modes == {"pooling_mode_mean_tokens"} or pooling.get("pooling_mode") == "mean"
    return averaged and set(kinds) <= _AVERAGED


def _averaging(name: str) -> Encoder:
    """Return an encoder whose vector is the mean state of a text's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(name, **_LOCAL)
    model = AutoModel.from_pretrained(name, **_LOCAL).eval()

    def encode(texts: Sequence[str]) -> Tensor:
        batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        means: Tensor = (model(**batch).last_hidden_state.float() * mask).sum(1) / mask.sum(1)
        return means

    return encode


def _of_library(name: str) -> Encoder:
    """Return an encoder as sentence-transformers reads it.

    Raises:
        ConfigError: the library is not installed.
    """
    try:
        library = import_module("sentence_transformers")
    except ImportError as error:
        raise ConfigError(
            f"encoder={name} does not just average its states, and needs a library for that: "
            "pip install 'errata[encoders]'."
        ) from error
    model = library.SentenceTransformer(name, device="cpu", **_LOCAL)

    def encode(texts: Sequence[str]) -> Tensor:
        vectors: Tensor = model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return vectors.float()

    return encode


def _json(name: str, file: str) -> Any:
    """Return what a file of an encoder says; None where there is no such file."""
    path = cached_file(
        name,
        file,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
