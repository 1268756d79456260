"""Write an artifact. Nothing that others have written there is lost unless that is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.config import MethodConfig
from errata.edit import Edit
from errata.errors import ArtifactError, FolderBusyError, StorageError, UsageError
from errata.saving.artifact import VERSION, Head, Origin, about_digest, edits_digest, is_finite
from errata.saving.bases import name_of
from errata.saving.identity import identity_of
from errata.saving.looking import look
from errata.saving.names import COMPLETE, CONFIG, FILES, LEDGER, PART, TENSORS, is_artifact, is_part
from errata.saving.placing import abandon, finish, place
from errata.saving.reading import head_of
from errata.storage.files import folder_named, storage_error
from errata.storage.locking import WAIT, locked


def write_artifact(
    path: str | Path,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: MethodConfig,
    state: tuple[Mapping[str, Tensor], Mapping[str, Any]],
    edits: Sequence[Edit],
    origin: Origin,
    overwrite: bool = False,
    wait: float = WAIT,
) -> None:
    """Write the files, all or none; those that are there as they should be stay.

    Args:
        state: the method's tensors and plain values.
        origin: what the model knows of its saves; that of this one is added.
        overwrite: replace what is there, whatever it is.
        wait: seconds to wait for another process that writes there.

    Raises:
        UsageError: the folder has other edits than the model came from.
        FolderBusyError: another process writes there, or has written since the model came from
            there.
        StorageError: the disk refused, or a value is not finite; what stood there before still
            does.
        ArtifactError: what is there is damaged.
    """
    folder = folder_named(path)
    identity = origin.identity = identity_of(base, tokenizer, origin.identity)
    about = {
        "errata_version": VERSION,
        "base_model_name_or_path": name_of(base),
        "base_model_type": base.config.model_type,
        "base_fingerprint": identity.quick,
        "base_weights": identity.weights,
        "base_tokenizer": identity.tokenizer,
        "base_dtype": str(base.dtype).removeprefix("torch."),
        "method": config.method,
        "settings": {name: value for name, value in config.to_dict().items() if name != "method"},
        "state": state[1],
        "edits": edits_digest(edits),
    }
    parts = _by_file(folder, state[0])
    try:
        about = json.loads(json.dumps(about, allow_nan=False))
    except ValueError as error:
        raise _diverged(folder, "a number") from error
    written, here = _Contents(about, parts, edits), folder.resolve()
    with locked(folder, wait):
        try:
            now = _replaceable(folder, about, edits, origin, overwrite)
            mine = {*now.parts, CONFIG} if now else set()
            if overwrite:
                mine |= {*written.parts, *FILES}
            place(
                folder, written, {name for name in mine if is_part(name)} - set(written.parts), mine
            )
        except OSError as error:
            if is_artifact(folder) and (folder / COMPLETE).exists():
                raise storage_error(
                    folder,
                    error,
                    "What was to be saved is complete beside it; the next save goes on.",
                ) from error
            raise storage_error(folder, error) from error
        finally:  # also when it was cut off: it may be complete
            origin.attempted |= {written.generation} - {""}
    origin.generations[here], origin.attempted = written.generation, set()


class _Contents:
    """The files of an artifact, made one by one as they are asked for; the config names the others'
    checksums.
    """

    def __init__(
        self, about: dict[str, Any], parts: dict[str, dict[str, Tensor]], edits: Sequence[Edit]
    ) -> None:
        self.about, self.parts, self.edits = about, parts, edits
        self.about_digest = about_digest(about)
        self.generation = ""

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        sums: dict[str, str] = {}
        for name, held in self.parts.items():
            bound = {"about": self.about_digest} if name == TENSORS else {"format": "pt"}
            content = to_safetensors(
                held, bound
            )  # of one entry, since several would come in any order
            sums[name] = hashlib.sha256(content).hexdigest()
            yield name, content
        ledger = "".join(
            json.dumps(edit.to_dict(), ensure_ascii=False) + "\n" for edit in self.edits
        ).encode()
        sums[LEDGER] = hashlib.sha256(ledger).hexdigest()
        yield LEDGER, ledger
        config = (
            json.dumps({**self.about, "sha256": sums}, indent=1, ensure_ascii=False) + "\n"
        ).encode()
        self.generation = hashlib.sha256(config).hexdigest()
        yield CONFIG, config


def _by_file(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {TENSORS: {}}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise _diverged(folder, repr(name))
        part, _, own = name.rpartition("/")
        memory = tensor.untyped_storage().data_ptr()
        alone = (
            tensor.clone(memory_format=torch.contiguous_format)
            if memory in seen
            else tensor.contiguous()
        )
        seen.add(memory)
        parts.setdefault(f"{part}{PART}" if part else TENSORS, {})[own] = alone
    return parts


def _diverged(folder: Path, what: str) -> StorageError:
    return StorageError(
        f"{folder}: not saved, since {what} of the method's state is not finite: an edit has diverged. Undo the last ones, "
        "or give smaller steps. What was saved there before is untouched."
    )


def _replaceable(
    folder: Path, about: Mapping[str, Any], edits: Sequence[Edit], origin: Origin, overwrite: bool
) -> Head | None:
    """What is in a locked folder, once it is sure that nothing is lost when it is replaced."""
    try:
        finish(folder)
        now = look(folder, head_of) if is_artifact(folder) else None
    except ArtifactError:
        if not overwrite:
            raise
        abandon(folder)
        return None
    if overwrite or now is None or origin.knows(now.generation):
        return now
    if folder.resolve() in origin.generations:
        raise FolderBusyError(
            f"{folder}: others have written there since this model came from it ({len(now.edits)} edits are there now); "
            "load it again and write your edits into that, or save to another folder (overwrite=True replaces it)."
        )
    same = (now.identity.quick, now.method, now.settings) == (
        about["base_fingerprint"],
        about["method"],
        about["settings"],
    )
    if not (same and list(edits[: len(now.edits)]) == now.edits):
        raise UsageError(
            f"{folder}: holds {len(now.edits)} edits ({now.method}) that this model did not come from; load it and go on "
            "there, or save to another folder (overwrite=True replaces it)."
        )
    return now
