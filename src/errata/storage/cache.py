"""A disk cache for what is expensive to compute, keyed by what it depends on.

The folder is `$ERRATA_CACHE`, else `~/.cache/errata`; it may be deleted at any time. A damaged file
is computed again, and a disk that refuses costs time, never an edit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from transformers import PreTrainedModel

from errata.storage.files import storage_error, write_whole

log = logging.getLogger(__name__)

KINDS = {
    "background": "text that the model wrote itself",
    "scale": "norms of keys and values on it",
    "router": "calibration of a router",
    "states": "states of the model on it",
    "second-moment": "second moments of keys",
    "weights": "digests of weights",
}
"""What the cache holds; each file's name begins with its kind."""
_OF = " of "
"""Stands between kind and model in the name of a file's tensor."""
_FILE = re.compile(r"[0-9a-f]{24}\.(safetensors|txt)")


@torch.no_grad()
def fingerprint(base: PreTrainedModel) -> str:
    """Return a hash (16 hex digits) of a model's type and parameters.

    It covers the parameters' names, shapes and about 64 values of each, as bf16.
    """
    digest = hashlib.sha256(base.config.model_type.encode())
    for name, parameter in base.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        for tensor in stored_tensors(parameter):
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].to(torch.bfloat16).float().cpu()
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def stored_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor consists of: itself, or a quantized one's parts."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from stored_tensors(getattr(tensor, name))


def cache_folder() -> Path:
    """Return the folder of the cache."""
    folder = os.environ.get("ERRATA_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "errata"


@dataclass(frozen=True)
class CacheEntry:
    """A file of the cache.

    Attributes:
        path: where it lies.
        kind: what it holds, see `KINDS`.
        model: the name of the base model that it was computed from; "" if unknown.
        size: in bytes.
    """

    path: Path
    kind: str
    model: str
    size: int


def entries() -> list[CacheEntry]:
    """Return the files of the cache, sorted by name; other files in its folder are passed over."""
    found = []
    for path in sorted(cache_folder().glob("*")):
        kind, _, rest = path.name.rpartition("-")
        if kind in KINDS and _FILE.fullmatch(rest):
            try:
                found.append(CacheEntry(path, kind, _model_of(path), path.stat().st_size))
            except OSError:  # another process removed it
                continue
    return found


def clear(kind: str | None = None) -> list[CacheEntry]:
    """Remove the files of the cache, or of one kind; return those that are gone.

    Raises:
        StorageError: the disk refused.
    """
    gone = []
    for entry in entries():
        if kind is None or entry.kind == kind:
            try:
                entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(entry.path, error) from error
            gone.append(entry)
    return gone


def _model_of(path: Path) -> str:
    if path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(path, framework="pt") as file:
            return str(next(iter(file.keys()))).partition(_OF)[2]
    except (OSError, SafetensorError, StopIteration):
        return ""


def cached(kind: str, key: str, make: Callable[[], Tensor], model: str = "") -> Tensor:
    """Return a tensor, on the CPU: from disk if it was computed before, else from `make`.

    Args:
        kind: of `KINDS`.
        key: everything the tensor depends on.
        make: computes the tensor; called when there is no intact file.
        model: the name of the base model, for `entries`.
    """
    path = path_of(kind, key)
    if (stored := _read(path)) is not None:
        return stored
    tensor = make().cpu().contiguous()
    # one entry of metadata: of several, the file would not have the same bytes each time
    keep(path, to_safetensors({f"{kind}{_OF}{model}": tensor}, {"sha256": _digest(tensor)}))
    return tensor


def keep(path: Path, content: bytes) -> None:
    """Write a file of the cache; where the folder refuses, say so once and go on without."""
    try:
        write_whole(path, content)
    except OSError as error:
        _warn_once(path.parent, str(error.strerror or error))


@functools.cache
def _warn_once(folder: Path, reason: str) -> None:
    log.warning(
        "%s: nothing can be kept there (%s), so it is computed anew each time; set ERRATA_CACHE to "
        "a folder that can be written.",
        folder,
        reason,
    )


def cached_json(kind: str, key: str, make: Callable[[], Any], model: str = "") -> Any:
    """Return what `make` computes, which JSON can hold, from disk if it is there; see `cached`."""

    def written() -> Tensor:
        return torch.frombuffer(bytearray(json.dumps(make()).encode()), dtype=torch.uint8)

    stored = cached(kind, key, written, model)
    try:
        return json.loads(stored.numpy().tobytes())
    except ValueError:  # whole, but another version kept something else under this key
        path_of(kind, key).unlink(missing_ok=True)
        return json.loads(cached(kind, key, written, model).numpy().tobytes())


def path_of(kind: str, key: str) -> Path:
    """Return the file of a kind and a key."""
    return cache_folder() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _read(path: Path) -> Tensor | None:
    """The one tensor of a file; None if there is no file, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(next(iter(file.keys())))
            if (file.metadata() or {}).get("sha256") == _digest(tensor):
                return tensor
    except (OSError, SafetensorError, StopIteration, ValueError):
        pass
    log.warning("%s is damaged; it is made anew.", path)
    return None


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().data).hexdigest()
