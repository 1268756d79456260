"""What an artifact is once it is read, and what a model knows of where it lies."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.edit import Edit
from errata.errors import BaseMismatchError
from errata.saving.bases import name_of
from errata.saving.identity import Identity, identity_of

log = logging.getLogger(__name__)

VERSION = 1


@dataclass
class Origin:
    """What a model knows of where its edits lie.

    Attributes:
        generations: folder -> what was there when this model was loaded from it or saved to it.
        attempted: what saves that did not come to their end would have put there, and may have.
        identity: of its base model.
    """

    generations: dict[Path, str] = field(default_factory=dict)
    attempted: set[str] = field(default_factory=set)
    identity: Identity | None = None

    def knows(self, generation: str) -> bool:
        """Whether the model came from this, or made it."""
        return generation in self.attempted or generation in self.generations.values()


@dataclass(frozen=True)
class Head:
    """What an artifact says of itself, checked but for its tensors.

    Attributes:
        generation: another one for other contents.
        about: digest of what the config says.
        parts: SHA-256 of each file but the config itself, by name.
    """

    path: Path
    generation: str
    about: str
    base_name: str
    base_type: str
    identity: Identity
    dtype: str
    method: str
    settings: dict[str, Any]
    values: dict[str, Any]
    parts: dict[str, str]
    edits: list[Edit]

    def goes_on_from(self, other: Head) -> bool:
        """Whether this is the other with more edits: of the same model, by the same method."""
        same = (self.identity.quick, self.method, self.settings) == (
            other.identity.quick,
            other.method,
            other.settings,
        )
        return same and [e.id for e in self.edits[: len(other.edits)]] == [
            e.id for e in other.edits
        ]


@dataclass(frozen=True)
class Artifact(Head):
    """A saved folder, read and checked for damage but not yet put on a model."""

    tensors: dict[str, Tensor]

    def check_base(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Origin:
        """Make sure that these are the model and the tokenizer that the edits were written for.

        Raises:
            BaseMismatchError: they are others.
        """
        given = identity_of(base, tokenizer)
        if given.quick != self.identity.quick:
            raise BaseMismatchError(
                f"{self.path}: these edits were written for {self.base_name!r} ({self.base_type}, fingerprint "
                f"{self.identity.quick}); the given base model is {name_of(base)!r} ({base.config.model_type}, "
                f"fingerprint {given.quick}). Give the model they were written for."
            )
        written = f"{self.path}: these edits were written for {self.base_name!r} ({self.base_type})"
        if self.identity.weights not in (None, given.weights):
            raise BaseMismatchError(
                f"{written}; the given base model {name_of(base)!r} is like it, but some of its weights are others "
                f"(SHA-256 {str(given.weights)[:16]}, not {str(self.identity.weights)[:16]}). Give that very model."
            )
        if self.identity.tokenizer not in (None, given.tokenizer):
            raise BaseMismatchError(
                f"{written}; with the given tokenizer, texts become other tokens than with the one they were written with. "
                "Give the model's own tokenizer."
            )
        if None in (self.identity.weights, self.identity.tokenizer):
            log.warning(
                "%s was written by an older errata: its tokenizer, and weights that the fingerprint does not sample, are "
                "not checked. Saved again, they are.",
                self.path,
            )
        return Origin({self.path.resolve(): self.generation}, identity=given)


def edits_digest(edits: Sequence[Edit]) -> str:
    """SHA-256 of edits in their order: of what a state was made from."""
    said = [[edit.id, edit.prompt, edit.target, edit.subject, edit.operation] for edit in edits]
    return hashlib.sha256(
        json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


def about_digest(about: Mapping[str, Any]) -> str:
    """SHA-256 of what a config says but for its files' checksums: what binds it to its tensors."""
    free = (
        "sha256",
        "base_model_name_or_path",
    )  # a base model may be moved; its weights say whether it is the one
    said = {name: value for name, value in about.items() if name not in free}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are numbers."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
