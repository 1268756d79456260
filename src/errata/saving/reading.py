"""Read an artifact, and check everything in it that can be checked."""

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
from errata.saving.artifact import (
    VERSION,
    Artifact,
    Header,
    config_digest,
    edits_digest,
    is_finite,
)
from errata.saving.names import (
    CONFIG,
    IMAGES,
    LEDGER,
    PART,
    TENSORS,
    is_artifact,
    is_artifact_file,
    unreadable,
)
from errata.saving.snapshot import Snapshot, check_digest, read_consistently
from errata.storage.identity import Identity

_DTYPES = ("float32", "float64", "float16", "bfloat16")
Kind = TypeVar("Kind")


def read_artifact(path: str | Path) -> Artifact:
    """Read a folder and check it. Nothing is written, and others may write meanwhile.

    Raises:
        ArtifactError: it is missing, damaged or of another version.
        FolderBusyError: others wrote again and again while it was read.
    """
    if not is_artifact(path):
        raise ArtifactError(
            f"{path}: not a folder of edits ({_why_not(path)}). `errata edit MODEL --out {path}` "
            "makes one."
        )
    return read_consistently(Path(path), read_all)


def _why_not(path: str | Path) -> str:
    if not str(path).strip():
        return "its name is empty"
    try:
        if Path(path).is_dir():
            return f"it has no {CONFIG}"
        return "it is a file" if Path(path).exists() else "there is none"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)


def files_of(path: Path) -> list[str]:
    """Return the names of an artifact's files.

    Raises:
        ArtifactError: it is missing, damaged or of another version.
    """
    return [*read_consistently(path, read_header).checksums, CONFIG]


def read_header(snapshot: Snapshot) -> Header:
    """Read an artifact's config and edits, but not its tensors.

    Raises:
        ArtifactError: it is damaged or of another version.
    """
    path = snapshot.folder / CONFIG
    with damage_named(path):
        raw = snapshot.content(CONFIG)
        config = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise ArtifactError(f"{path}: damaged, expected a JSON object, got {kind}.")
    if IMAGES in config:
        raise ArtifactError(
            f"{snapshot.folder}: holds edits of a text-to-image model, not of a language model; "
            "`errata paint` draws with them."
        )
    version = config.get("errata_version")
    if version != VERSION or isinstance(version, bool):
        raise ArtifactError(
            f"{path}: version {str(version)[:40]}; this errata reads version {VERSION}."
        )
    fields = _Fields(path, config)
    checksums = _checksums(fields)
    dtype = fields.get("base_dtype", str)
    if dtype not in _DTYPES:
        raise ArtifactError(
            f"{path}: damaged, its base model's dtype is {dtype[:40]!r}; expected "
            f"{', '.join(_DTYPES)}."
        )
    edits = _edits(snapshot, checksums[LEDGER])
    if fields.get_optional("edits") not in (None, edits_digest(edits)):
        raise ArtifactError(
            f"{snapshot.folder / LEDGER}: its edits are not those, or not in the order, that the "
            "state was made from."
        )
    return Header(
        path=snapshot.folder,
        config_digest=config_digest(config),
        generation=hashlib.sha256(raw).hexdigest(),
        base_name=fields.get("base_model_name_or_path", str),
        base_type=fields.get("base_model_type", str),
        identity=Identity(
            fields.get("base_fingerprint", str),
            fields.get_optional("base_weights"),
            fields.get_optional("base_tokenizer"),
            fields.get_optional("base_file"),
        ),
        dtype=dtype,
        method=fields.get("method", str),
        settings=fields.get("settings", dict),
        values=fields.get("state", dict),
        checksums=checksums,
        edits=edits,
    )


def _checksums(fields: _Fields) -> dict[str, str]:
    """Return the SHA-256 of each file, by name, as the config has them."""
    checksums = fields.get("sha256", dict)
    are_texts = all(isinstance(digest, str) for digest in checksums.values())
    if not are_texts or not {TENSORS, LEDGER} <= checksums.keys():
        raise ArtifactError(f"{fields.path}: damaged, it does not say the checksums of its files.")
    for name in checksums:
        if not is_artifact_file(name) or name == CONFIG:
            raise ArtifactError(
                f"{fields.path}: damaged, it names {name[:80]!r}, which is no file of an artifact."
            )
    return checksums


def _edits(snapshot: Snapshot, digest: str) -> list[Edit]:
    """Return the edits of the ledger that has this SHA-256."""
    path = snapshot.folder / LEDGER
    with damage_named(path):
        content = snapshot.content(LEDGER)
        check_digest(path, hashlib.sha256(content).hexdigest(), digest, len(content))
        edits = [
            _edit(path, number, line)
            for number, line in enumerate(content.split(b"\n"), 1)
            if line.strip()
        ]
    if len({edit.id for edit in edits}) < len(edits):
        raise ArtifactError(f"{path}: damaged, two edits have the same id.")
    return edits


def _edit(path: Path, number: int, line: bytes) -> Edit:
    try:
        row = json.loads(line.decode("utf-8"))
        if not isinstance(row, dict):
            raise EditError(f"expected a JSON object, got {type(row).__name__}.")
        return Edit.from_ledger(row, also=PROBE_FIELDS)
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}:{number}: damaged, {error}") from error


def read_all(snapshot: Snapshot) -> Artifact:
    """Read an artifact with its tensors.

    Raises:
        ArtifactError: it is damaged or of another version.
    """
    header = read_header(snapshot)
    tensors = _main_tensors(snapshot, header)
    for name, digest in header.checksums.items():
        if name not in (TENSORS, LEDGER):
            part = name.removesuffix(PART)
            with damage_named(snapshot.folder / name):
                mapped = snapshot.mapped(name, digest)
                tensors |= {f"{part}/{key}": tensor for key, tensor in mapped.items()}
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ArtifactError(
                f"{snapshot.folder}: damaged, {name[:80]!r} holds values that are no numbers."
            )
    return Artifact(**vars(header), tensors=tensors)


def _main_tensors(snapshot: Snapshot, header: Header) -> dict[str, Tensor]:
    """Return the tensors outside the parts.

    They are copied into aligned memory: sums depend on the alignment, in their last bits.
    """
    path = snapshot.folder / TENSORS
    with damage_named(path):
        content = snapshot.content(TENSORS)
        digest = hashlib.sha256(content).hexdigest()
        check_digest(path, digest, header.checksums[TENSORS], len(content))
        tensors = {name: tensor.clone() for name, tensor in parse_safetensors(content).items()}
        file_header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = file_header.get("__metadata__") or {}
    if metadata.get("about") not in (None, header.config_digest):
        raise ArtifactError(
            f"{snapshot.folder / CONFIG}: damaged or changed since it was written ({TENSORS} "
            "belongs to another)."
        )
    return tensors


class _Fields:
    """The fields of a config, checked for their types."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config

    def get(self, name: str, kind: type[Kind]) -> Kind:
        value = self.config.get(name)
        if not isinstance(value, kind):
            problem = (
                "is missing"
                if name not in self.config
                else f"is of type {type(value).__name__}, not {kind.__name__}"
            )
            raise ArtifactError(f"{self.path}: damaged, {name!r} {problem}.")
        return value

    def get_optional(self, name: str) -> str | None:
        """Return a text that older artifacts lack."""
        return None if self.config.get(name) is None else self.get(name, str)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


@contextlib.contextmanager
def damage_named(path: str | Path) -> Iterator[None]:
    """Raise an `ArtifactError` that names the file for any error while its contents are used."""
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
        message = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path}: damaged, {type(error).__name__}: {message}") from error
