"""`Artifact`: saved edits as read from a folder, and `Origin`: the folders a model was saved in."""

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
from errata.saving.base_models import name_of
from errata.storage.identity import Identity, file_digest, identity_of

log = logging.getLogger(__name__)

VERSION = 1


@dataclass
class Origin:
    """Where a model was loaded from and saved to.

    Attributes:
        generations: folder -> the generation there when this model was last loaded from it or saved
            to it.
        attempted: generations of unfinished saves, which may be complete on disk.
        identity: of the base model, if it was computed before.
    """

    generations: dict[Path, str] = field(default_factory=dict)
    attempted: set[str] = field(default_factory=set)
    identity: Identity | None = None

    def knows(self, generation: str) -> bool:
        """Return whether the model was loaded from this generation, or wrote it."""
        return generation in self.attempted or generation in self.generations.values()


@dataclass(frozen=True)
class Header:
    """The contents of an artifact but its tensors, checked.

    Attributes:
        generation: SHA-256 of the config file; it differs whenever any file does.
        config_digest: see `config_digest`.
        checksums: SHA-256 of each file but the config itself, by name.
    """

    path: Path
    generation: str
    config_digest: str
    base_name: str
    base_type: str
    identity: Identity
    dtype: str
    method: str
    settings: dict[str, Any]
    values: dict[str, Any]
    checksums: dict[str, str]
    edits: list[Edit]

    @property
    def made_for(self) -> tuple[str, str, dict[str, Any]]:
        """The base model's fingerprint, the method and its settings."""
        return self.identity.fingerprint, self.method, self.settings

    def extends(self, other: Header) -> bool:
        """Return whether this has the other's base model, method, settings, edits, maybe more."""
        first_ids = [edit.id for edit in self.edits[: len(other.edits)]]
        return self.made_for == other.made_for and first_ids == [edit.id for edit in other.edits]


@dataclass(frozen=True)
class Artifact(Header):
    """A saved folder, read and checked for damage but not yet put on a model."""

    tensors: dict[str, Tensor]

    def check_file(self) -> None:
        """Make sure that a base model's single file, if it is there, is still the one edited.

        Raises:
            BaseMismatchError: it is another.
        """
        file, expected = Path(self.base_name), self.identity.file
        try:
            found = file_digest(file) if expected is not None else None
        except OSError:  # whoever loads it says so
            return
        if found != expected:
            raise BaseMismatchError(
                f"{self.path}: these edits were written for {self.base_name!r} when its SHA-256 "
                f"was {str(expected)[:16]}; now it is {str(found)[:16]}. Put that file back."
            )

    def check_base(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Origin:
        """Make sure that the edits were written for this model and tokenizer.

        Raises:
            BaseMismatchError: they were written for others.
        """
        given = identity_of(base, tokenizer)
        written = f"{self.path}: these edits were written for {self.base_name!r} ({self.base_type}"
        if given.fingerprint != self.identity.fingerprint:
            raise BaseMismatchError(
                f"{written}, fingerprint {self.identity.fingerprint}); the given base model is "
                f"{name_of(base)!r} ({base.config.model_type}, fingerprint {given.fingerprint}). "
                "Give the model they were written for."
            )
        if self.identity.weights not in (None, given.weights):
            raise BaseMismatchError(
                f"{written}); the given base model {name_of(base)!r} is like it, but some of its "
                f"weights are others (SHA-256 {str(given.weights)[:16]}, not "
                f"{str(self.identity.weights)[:16]}). Give that very model."
            )
        if self.identity.tokenizer not in (None, given.tokenizer):
            raise BaseMismatchError(
                f"{written}); with the given tokenizer, texts become other tokens than with the "
                "one they were written with. Give the model's own tokenizer."
            )
        if None in (self.identity.weights, self.identity.tokenizer):
            log.warning(
                "%s was written by an older errata: its tokenizer, and weights that the "
                "fingerprint does not sample, are not checked. Saved again, they are.",
                self.path,
            )
        return Origin({self.path.resolve(): self.generation}, identity=given)


def edits_digest(edits: Sequence[Edit]) -> str:
    """Return the SHA-256 of edits in their order, which binds a state to what it was made from."""
    rows = [
        [edit.id, edit.prompt, edit.target, edit.subject, edit.operation, *edit.aliases]
        for edit in edits
    ]
    text = json.dumps(rows, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a config but for its checksums and the base model's name.

    It binds a config to its tensors. The name is left out since a base model may be moved; its
    weights identify it.
    """
    bound = {
        name: value
        for name, value in config.items()
        if name not in ("sha256", "base_model_name_or_path")
    }
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Return whether no value is infinite or NaN."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
