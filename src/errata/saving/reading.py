"""Read an artifact, and believe nothing of it that can be checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from errata.edit import PROBE_FIELDS, Edit
from errata.errors import ArtifactError, EditError, ErrataError, UsageError
from errata.saving.artifact import VERSION, Artifact, Head, about_digest, edits_digest, is_finite
from errata.saving.identity import Identity
from errata.saving.looking import Look, check_digest, look
from errata.saving.names import CONFIG, LEDGER, PART, TENSORS, is_artifact, is_own, unreadable

_DTYPES = ("float32", "float64", "float16", "bfloat16")
Kind = TypeVar("Kind")


def read_artifact(path: str | Path) -> Artifact:
    """Read a folder and check that it is whole. Nothing is written, and others may write meanwhile.

    Raises:
        ArtifactError: it is missing, damaged or of another version.
        FolderBusyError: others wrote again and again while it was read.
    """
    if not is_artifact(path):
        raise ArtifactError(
            f"{path}: not a folder of edits ({_missing(path)}). `errata edit MODEL --out {path}` makes one."
        )
    return look(Path(path), artifact_of)


def _missing(path: str | Path) -> str:
    if not str(path).strip():
        return "its name is empty"
    try:
        return (
            f"it has no {CONFIG}"
            if Path(path).is_dir()
            else "it is a file"
            if Path(path).exists()
            else "there is none"
        )
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)


def files_of(path: Path) -> list[str]:
    """The names of an artifact's files.

    Raises:
        ArtifactError: it is missing, damaged or of another version.
    """
    return [*look(path, head_of).parts, CONFIG]


def head_of(seen: Look) -> Head:
    """What an artifact says of itself; its tensors are not looked at.

    Raises:
        ArtifactError: it is damaged or of another version.
    """
    path = seen.folder / CONFIG
    with damage_named(path):
        raw = seen.content(CONFIG)
        about = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    if not isinstance(about, dict):
        raise ArtifactError(f"{path}: damaged, expected a JSON object, got {type(about).__name__}.")
    version = about.get("errata_version")
    if version != VERSION or isinstance(version, bool):
        raise ArtifactError(
            f"{path}: version {str(version)[:40]}; this errata reads version {VERSION}."
        )
    said = _Said(path, about)
    parts = said.get("sha256", dict)
    if (
        not all(isinstance(digest, str) for digest in parts.values())
        or not {TENSORS, LEDGER} <= parts.keys()
    ):
        raise ArtifactError(f"{path}: damaged, it does not say the checksums of its files.")
    if strange := next((name for name in parts if not is_own(name) or name == CONFIG), None):
        raise ArtifactError(
            f"{path}: damaged, it names {strange[:80]!r}, which is no file of an artifact."
        )
    dtype = said.get("base_dtype", str)
    if dtype not in _DTYPES:
        raise ArtifactError(
            f"{path}: damaged, its base model's dtype is {dtype[:40]!r}; expected {', '.join(_DTYPES)}."
        )
    ledger = seen.folder / LEDGER
    with damage_named(ledger):
        lines = seen.content(LEDGER)
        check_digest(ledger, hashlib.sha256(lines).hexdigest(), parts[LEDGER], len(lines))
        edits = [
            _edit(ledger, number, line)
            for number, line in enumerate(lines.split(b"\n"), 1)
            if line.strip()
        ]
    if len({edit.id for edit in edits}) < len(edits):
        raise ArtifactError(f"{ledger}: damaged, two edits have the same id.")
    if said.maybe("edits") not in (None, edits_digest(edits)):
        raise ArtifactError(
            f"{ledger}: its edits are not those, or not in the order, that the state was made from."
        )
    return Head(
        path=seen.folder,
        about=about_digest(about),
        generation=hashlib.sha256(raw).hexdigest(),
        base_name=said.get("base_model_name_or_path", str),
        base_type=said.get("base_model_type", str),
        identity=Identity(
            said.get("base_fingerprint", str),
            said.maybe("base_weights"),
            said.maybe("base_tokenizer"),
        ),
        dtype=dtype,
        method=said.get("method", str),
        settings=said.get("settings", dict),
        values=said.get("state", dict),
        parts=parts,
        edits=edits,
    )


def artifact_of(seen: Look) -> Artifact:
    """An artifact, whole.

    Raises:
        ArtifactError: it is damaged or of another version.
    """
    head = head_of(seen)
    path = seen.folder / TENSORS
    with damage_named(path):
        content = seen.content(TENSORS)
        check_digest(path, hashlib.sha256(content).hexdigest(), head.parts[TENSORS], len(content))
        # copied: in a file they lie anywhere, and sums depend on where memory is aligned, in their
        # last bits
        tensors: dict[str, Tensor] = {
            name: tensor.clone() for name, tensor in parse_safetensors(content).items()
        }
        bound = (
            json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__")
            or {}
        )
    if bound.get("about") not in (None, head.about):
        raise ArtifactError(
            f"{seen.folder / CONFIG}: damaged or changed since it was written ({TENSORS} belongs to another)."
        )
    for name, digest in head.parts.items():
        if name not in (TENSORS, LEDGER):
            with damage_named(seen.folder / name):
                held = seen.mapped(name, digest)
                tensors |= {
                    f"{name.removesuffix(PART)}/{own}": tensor for own, tensor in held.items()
                }
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ArtifactError(
                f"{seen.folder}: damaged, {name[:80]!r} holds values that are no numbers."
            )
    return Artifact(**vars(head), tensors=tensors)


def _edit(path: Path, number: int, line: bytes) -> Edit:
    try:
        said = json.loads(line.decode("utf-8"))
        if not isinstance(said, dict):
            raise EditError(f"expected a JSON object, got {type(said).__name__}.")
        return Edit.from_ledger(said, also=PROBE_FIELDS)
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}:{number}: damaged, {error}") from error


class _Said:
    """A config's fields, each of the kind that it must be."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about

    def get(self, name: str, kind: type[Kind]) -> Kind:
        """One that must be there."""
        value = self.about.get(name)
        if not isinstance(value, kind):
            there = (
                "is missing"
                if name not in self.about
                else f"is of type {type(value).__name__}, not {kind.__name__}"
            )
            raise ArtifactError(f"{self.path}: damaged, {name!r} {there}.")
        return value

    def maybe(self, name: str) -> str | None:
        """A text that older artifacts lack."""
        return None if self.about.get(name) is None else self.get(name, str)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


@contextlib.contextmanager
def damage_named(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong while an artifact's contents are understood into an `ArtifactError` that
    names it.
    """
    try:
        yield
    except OSError as error:
        raise unreadable(error) from error
    except UsageError as error:
        raise ArtifactError(f"{path}: cannot be opened, {error}") from error
    except ErrataError:
        raise
    except (
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        SafetensorError,
    ) as error:
        said = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path}: damaged, {type(error).__name__}: {said}") from error
