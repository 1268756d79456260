"""`open_edits`: exported edits for a model in another engine, if its tokens are theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from errata.engines.processor import EditProcessor
from errata.errors import BaseMismatchError, ConfigError

FOLDER = "ERRATA_EDITS"
"""The environment variable that names the folder, where the engine makes its processors itself."""
SAMPLE = "Who led Traren in 1984?"


def open_edits(
    folder: str | Path, encode: Callable[[str], Sequence[int]], advice: str
) -> EditProcessor:
    """Read exported edits, and make sure that a model has the tokens they were written in.

    Args:
        folder: written by `errata export`.
        encode: gives a text's token ids in the model, without special tokens.
        advice: what to do where they are others.

    Raises:
        ArtifactError: the folder cannot be read.
        BaseMismatchError: the model has other tokens.
    """
    edits = EditProcessor.load(folder)
    if edits.texts.read(encode(SAMPLE))[0].strip() != SAMPLE:
        raise BaseMismatchError(
            f"{folder}: these edits were written for {edits.base!r}, whose tokens are not this "
            f"model's; {advice}."
        )
    return edits


def open_with(tokenizer: Any, folder: str) -> EditProcessor:
    """Read the exported edits that ERRATA_EDITS names, for a server's model.

    Args:
        tokenizer: the model's, as transformers has it; None: the server was started without.

    Raises:
        ArtifactError: the folder cannot be read, or was written for other tokens.
        ConfigError: nothing tells which tokens the model has.
    """
    if tokenizer is None:
        raise ConfigError(
            f"{FOLDER} is set, but the server was started without a tokenizer, so nothing tells "
            "whether the edits are in this model's tokens; leave --skip-tokenizer-init out."
        )

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    return open_edits(folder, encode, f"serve that model, or set {FOLDER} to another folder")
