"""A folder of edits of images: what it holds, read and written whole or not at all.

The files have the names of a language model's edits, so that one lock and one transaction serve
both: `edit_config.json` (the pipeline, its encoders' digests, method, settings, checksums),
`edits.jsonl`, `edit_model.safetensors`. The config says `base_images`, by which the two are told
apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from errata.errors import ArtifactError, EditError, FolderBusyError, StorageError, UsageError
from errata.images.image_edit import ImageEdit
from errata.saving.artifact import VERSION, is_finite
from errata.saving.names import CONFIG, IMAGES, LEDGER, TENSORS, is_artifact
from errata.saving.reading import damage_named
from errata.saving.snapshot import Snapshot, check_digest, read_consistently
from errata.saving.transaction import commit, finish
from errata.storage.files import folder_named, storage_error
from errata.storage.json_lines import json_type
from errata.storage.locking import WAIT, locked


@dataclass(frozen=True)
class ImageArtifact:
    """A saved folder, read and checked for damage, but not yet on a pipeline.

    Attributes:
        path: the folder.
        generation: SHA-256 of the config file.
        base: the folder of the pipeline.
        encoders: name -> digests of its weights and of its tokenizer.
        method, settings: how the edits were written.
        edits, tensors: the edits, oldest first, and what they left behind.
    """

    path: Path
    generation: str
    base: str
    encoders: dict[str, dict[str, str]]
    method: str
    settings: dict[str, Any]
    edits: list[ImageEdit]
    tensors: dict[str, Tensor]


def holds_images(path: str | Path) -> bool:
    """Return whether a folder holds edits of images; a damaged config holds none."""
    if not is_artifact(path):
        return False
    try:
        config = json.loads(read_consistently(Path(path), lambda seen: seen.content(CONFIG)))
    except (OSError, ValueError, ArtifactError, RecursionError):
        return False
    return isinstance(config, dict) and IMAGES in config


def read_images(path: str | Path) -> ImageArtifact:
    """Read a folder and check it. Nothing is written, and others may write meanwhile.

    Raises:
        ArtifactError: it is missing, damaged or of another version, or holds other edits.
        FolderBusyError: others wrote again and again while it was read.
    """
    if not is_artifact(path):
        raise ArtifactError(
            f"{path}: not a folder of edits. `errata edit PIPELINE --out {path}` makes one."
        )
    return read_consistently(Path(path), _read)


def _read(snapshot: Snapshot) -> ImageArtifact:
    path = snapshot.folder / CONFIG
    with damage_named(path):
        raw = snapshot.content(CONFIG)
        config = json.loads(raw.decode("utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"expected a JSON object, got {json_type(config)}")
    if IMAGES not in config:
        raise ArtifactError(
            f"{snapshot.folder}: holds edits of a language model, not of images; `errata ask` "
            "asks it."
        )
    if config.get("errata_version") != VERSION:
        raise ArtifactError(
            f"{path}: version {str(config.get('errata_version'))[:40]}; this errata reads version "
            f"{VERSION}."
        )
    with damage_named(path):
        sums = _field(config, "sha256", dict)
        encoders = _field(config, "encoders", dict)
        if not all(isinstance(digests, dict) for digests in encoders.values()):
            raise ValueError("'encoders' has something other than digests in it")
        bound = _bound(config)
    contents: dict[str, bytes] = {}
    for name in (LEDGER, TENSORS):
        with damage_named(snapshot.folder / name):
            content = contents[name] = snapshot.content(name)
            digest = hashlib.sha256(content).hexdigest()
        check_digest(snapshot.folder / name, digest, str(sums.get(name)), len(content))
    edits = []
    for number, line in enumerate(contents[LEDGER].splitlines(), 1):
        try:
            edits.append(ImageEdit.from_dict(json.loads(line)))
        except (EditError, ValueError, TypeError, RecursionError) as error:
            where = f"{snapshot.folder / LEDGER}:{number}"
            raise ArtifactError(f"{where}: damaged, {error}") from error
    with damage_named(snapshot.folder / TENSORS):
        size = int.from_bytes(contents[TENSORS][:8], "little")
        header = json.loads(contents[TENSORS][8 : 8 + size])
        if header.get("__metadata__", {}).get("about") != bound:
            raise ValueError(f"it belongs to another {CONFIG}")
        tensors = {key: each.clone() for key, each in parse_safetensors(contents[TENSORS]).items()}
        if not all(map(is_finite, tensors.values())):
            raise ValueError("it holds values that are no numbers")
    with damage_named(path):
        return ImageArtifact(
            snapshot.folder,
            hashlib.sha256(raw).hexdigest(),
            _field(config, IMAGES, str),
            encoders,
            _field(config, "method", str),
            _field(config, "settings", dict),
            edits,
            tensors,
        )


def _field(config: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(config.get(name), kind):
        raise ValueError(f"{name!r} is missing, or no {kind.__name__}")
    return config[name]


def _bound(config: Mapping[str, Any]) -> str:
    """Return the digest that binds the tensors to a config; a pipeline may be moved."""
    kept = {name: value for name, value in config.items() if name not in ("sha256", IMAGES)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def write_images(
    path: str | Path,
    config: Mapping[str, Any],
    edits: Sequence[ImageEdit],
    tensors: Mapping[str, Tensor],
    known: str | None,
    wait: float = WAIT,
) -> str:
    """Write edits and what they left behind, all files or none; return the generation.

    Args:
        config: all of the config but its version, the edits' digest and the checksums.
        known: the generation that these edits go on from; None for none.
        wait: seconds to wait for another process that writes there.

    Raises:
        UsageError: the folder holds other edits.
        FolderBusyError: another process writes there, or has written since.
        StorageError: the disk refused, or a value is not finite; what was there before still is.
        ArtifactError: what is there is damaged.
    """
    folder = folder_named(path)
    for name, each in tensors.items():
        if not is_finite(each):
            raise StorageError(
                f"{folder}: not saved, since {name!r} is not finite: an edit has diverged. Give "
                "smaller steps. What was saved there before is untouched."
            )
    generation = ""

    def contents() -> Iterator[tuple[str, bytes]]:
        nonlocal generation
        lines = [json.dumps(edit.to_dict(), ensure_ascii=False) + "\n" for edit in edits]
        ledger = "".join(lines).encode()
        ledger_sum = hashlib.sha256(ledger).hexdigest()
        # the edits' digest stands outside the checksums, so that the tensors are bound to it
        full = {"errata_version": VERSION, **config, "edits": ledger_sum}
        stored = to_safetensors(
            {name: each.contiguous() for name, each in tensors.items()}, {"about": _bound(full)}
        )
        yield TENSORS, stored
        yield LEDGER, ledger
        sums = {LEDGER: ledger_sum, TENSORS: hashlib.sha256(stored).hexdigest()}
        text = json.dumps({**full, "sha256": sums}, indent=1, ensure_ascii=False) + "\n"
        generation = hashlib.sha256(text.encode()).hexdigest()
        yield CONFIG, text.encode()

    with locked(folder, wait):
        try:
            finish(folder)
            present = is_artifact(folder)
            if present:
                _check_replaceable(folder, edits, known)
            commit(folder, contents(), (), (CONFIG, LEDGER, TENSORS) if present else ())
        except OSError as error:
            raise storage_error(folder, error) from error
    return generation


def _check_replaceable(folder: Path, edits: Sequence[ImageEdit], known: str | None) -> None:
    current = read_images(folder)
    if current.generation == known or current.edits == list(edits[: len(current.edits)]):
        return
    if known is not None:
        raise FolderBusyError(
            f"{folder}: others have written there since these edits came from it "
            f"({len(current.edits)} are there now); load it again, or save to another folder."
        )
    raise UsageError(
        f"{folder}: holds {len(current.edits)} other edits; load it and go on there, or save to "
        "another folder."
    )
