"""Write an artifact; what others have written there is replaced only if that is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from errata.edit import Edit
from errata.errors import ArtifactError, FolderBusyError, StorageError, UsageError
from errata.methods.base import Method
from errata.saving.artifact import (
    VERSION,
    Header,
    Origin,
    config_digest,
    edits_digest,
    is_finite,
)
from errata.saving.base_models import name_of
from errata.saving.names import COMPLETE, CONFIG, FILES, LEDGER, PART, TENSORS, is_artifact, is_part
from errata.saving.reading import read_header
from errata.saving.snapshot import read_consistently
from errata.saving.transaction import abandon, commit, finish
from errata.storage.files import folder_named, storage_error
from errata.storage.identity import identity_of
from errata.storage.locking import WAIT, locked


def write_artifact(
    path: str | Path,
    method: Method,
    origin: Origin,
    overwrite: bool = False,
    wait: float = WAIT,
) -> None:
    """Write a method's edits and state, all files or none; unchanged files are kept.

    Args:
        method: what is saved; its patch is not installed.
        origin: where the model was loaded and saved before; this save is added to it.
        overwrite: replace whatever is there.
        wait: seconds to wait for another process that writes there.

    Raises:
        UsageError: the folder has other edits than the model was loaded with.
        FolderBusyError: another process writes there, or has written since the model was loaded or
            saved there.
        StorageError: the disk refused, or a value is not finite; what was there before still is.
        ArtifactError: what is there is damaged.
    """
    folder = folder_named(path)
    base, edits, (tensors, values) = method.lm.model, method.edits, method.state()
    identity = origin.identity = identity_of(base, method.lm.tokenizer, origin.identity)
    settings = method.config.to_dict()
    config = {
        "errata_version": VERSION,
        "base_model_name_or_path": name_of(base),
        "base_model_type": base.config.model_type,
        "base_fingerprint": identity.fingerprint,
        "base_weights": identity.weights,
        "base_tokenizer": identity.tokenizer,
        "base_dtype": str(base.dtype).removeprefix("torch."),
        "method": method.config.method,
        "settings": {name: value for name, value in settings.items() if name != "method"},
        "state": values,
        "edits": edits_digest(edits),
    }
    if identity.file is not None:
        config["base_file"] = identity.file
    by_file = _tensors_by_file(folder, tensors)
    try:
        config = json.loads(json.dumps(config, allow_nan=False))
    except ValueError as error:
        raise _diverged(folder, "a number") from error
    contents, resolved = _Contents(config, by_file, edits), folder.resolve()
    with locked(folder, wait):
        try:
            current = _check_replaceable(folder, config, edits, origin, overwrite)
            replaceable = {*current.checksums, CONFIG} if current else set()
            if overwrite:
                replaceable |= {*by_file, *FILES}
            removed = {name for name in replaceable if is_part(name)} - set(by_file)
            commit(folder, contents, removed, replaceable)
        except OSError as error:
            if is_artifact(folder) and (folder / COMPLETE).exists():
                kept = "What was to be saved is complete beside it; the next save goes on."
                raise storage_error(folder, error, kept) from error
            raise storage_error(folder, error) from error
        finally:  # also after an interrupt: the commit may be complete
            origin.attempted |= {contents.generation} - {""}
    origin.generations[resolved], origin.attempted = contents.generation, set()


class _Contents:
    """(name, content) of an artifact's files, made one by one; the config has the checksums.

    Attributes:
        generation: SHA-256 of the config; empty until the config is made.
    """

    def __init__(
        self,
        config: dict[str, Any],
        tensors: dict[str, dict[str, Tensor]],
        edits: Sequence[Edit],
    ) -> None:
        self.config, self.tensors, self.edits = config, tensors, edits
        self.generation = ""

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        bound_to = {"about": config_digest(self.config)}
        checksums: dict[str, str] = {}
        for name, tensors in self.tensors.items():
            # one entry of metadata, since several would come in any order
            content = to_safetensors(tensors, bound_to if name == TENSORS else {"format": "pt"})
            checksums[name] = hashlib.sha256(content).hexdigest()
            yield name, content
        lines = (json.dumps(edit.to_dict(), ensure_ascii=False) + "\n" for edit in self.edits)
        ledger = "".join(lines).encode()
        checksums[LEDGER] = hashlib.sha256(ledger).hexdigest()
        yield LEDGER, ledger
        text = json.dumps({**self.config, "sha256": checksums}, indent=1, ensure_ascii=False)
        config = f"{text}\n".encode()
        self.generation = hashlib.sha256(config).hexdigest()
        yield CONFIG, config


def _tensors_by_file(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return contiguous tensors that share no memory: file -> name in that file -> tensor."""
    by_file: dict[str, dict[str, Tensor]] = {TENSORS: {}}
    memories: set[int] = set()
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise _diverged(folder, repr(name))
        part, _, key = name.rpartition("/")
        memory = tensor.untyped_storage().data_ptr()
        own = tensor.contiguous()
        if memory in memories:
            own = tensor.clone(memory_format=torch.contiguous_format)
        memories.add(memory)
        by_file.setdefault(f"{part}{PART}" if part else TENSORS, {})[key] = own
    return by_file


def _diverged(folder: Path, what: str) -> StorageError:
    return StorageError(
        f"{folder}: not saved, since {what} of the method's state is not finite: an edit has "
        "diverged. Undo the last ones, or give smaller steps. What was saved there before is "
        "untouched."
    )


def _check_replaceable(
    folder: Path, config: Mapping[str, Any], edits: Sequence[Edit], origin: Origin, overwrite: bool
) -> Header | None:
    """Make sure that replacing what is in a locked folder loses nothing; return its header, if any.

    Raises:
        FolderBusyError, UsageError, ArtifactError: it would, or the artifact is damaged, and
            `overwrite` is False.
    """
    try:
        finish(folder)
        current = read_consistently(folder, read_header) if is_artifact(folder) else None
    except ArtifactError:
        if not overwrite:
            raise
        abandon(folder)
        return None
    if overwrite or current is None or origin.knows(current.generation):
        return current
    if folder.resolve() in origin.generations:
        raise FolderBusyError(
            f"{folder}: others have written there since this model came from it "
            f"({len(current.edits)} edits are there now); load it again and write your edits into "
            "that, or save to another folder (overwrite=True replaces it)."
        )
    made_for = config["base_fingerprint"], config["method"], config["settings"]
    if current.made_for != made_for or list(edits[: len(current.edits)]) != current.edits:
        raise UsageError(
            f"{folder}: holds {len(current.edits)} edits ({current.method}) that this model did "
            "not come from; load it and go on there, or save to another folder (overwrite=True "
            "replaces it)."
        )
    return current
