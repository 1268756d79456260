"""Digests that tell whether edits were written for a given base model and tokenizer.

The fingerprint (see `storage.cache`) samples every tensor; the weights' digest reads all of them.
For a model that is unchanged since it was loaded, the digest is kept on disk, under the sizes and
times of the files it was loaded from. A model from a single file is known by that file's digest
besides, which tells of another file before it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.storage.cache import cache_folder, fingerprint, keep, stored_tensors
from errata.storage.files import digest_of

_SOURCE, _FILE = "errata_files", "errata_file"
"""The attributes of a model that `record_source` sets."""
_DIGEST = "errata_digest"
"""The attribute of a tokenizer that `tokenizer_digest` sets."""
_WEIGHTS = ("*.safetensors", "*.bin", "*.json")
_PROBES = (
    "The capital of France is Paris, isn't it?",
    "  two spaces,\ta tab\nand a line; CAPITALS, camelCase, snake_case: 3.14 + 1,000 = ½?",
    "Ünïcödé e\u0301 ﬁ Ａ — “quotes” … Привет мир שלום مرحبا नमस्ते 東京は日本の首都です。 한국어 🙂",
)
"""Texts whose tokens tell how a tokenizer normalises and splits."""


@dataclass(frozen=True)
class Identity:
    """Digests of a base model and its tokenizer; None for those that an older artifact lacks.

    Attributes:
        fingerprint: of a sample of the model's weights.
        weights: of all the weights.
        tokenizer: of the tokenizer.
        file: of the single file that the model was loaded from; None if there is none.
    """

    fingerprint: str
    weights: str | None
    tokenizer: str | None
    file: str | None = None


def identity_of(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: Identity | None = None
) -> Identity:
    """Return the identity of a base model without edits and its tokenizer.

    Args:
        known: an identity that is returned if it is whole and has the model's fingerprint.
    """
    current = fingerprint(base)
    if known is not None and known.fingerprint == current and known.weights and known.tokenizer:
        return known
    source: tuple[Path, tuple[int, int]] | None = getattr(base, _FILE, None)
    unchanged = source and source[0].is_file() and _stat(source[0]) == source[1]
    file = file_digest(source[0]) if source and unchanged else None
    return Identity(current, weights_digest(base), tokenizer_digest(tokenizer), file)


@torch.no_grad()
def weights_digest(base: PreTrainedModel) -> str:
    """Return the SHA-256 of a model's state: names, shapes, and values, floats read as bf16."""
    path = _digest_file(base)
    if path is not None and (saved := _read_digest(path)) is not None:
        return saved
    digest, hashed = hashlib.sha256(), dict[tuple[Any, ...], str]()
    parts = ((n, part) for n, t in sorted(base.state_dict().items()) for part in stored_tensors(t))
    for name, tensor in parts:
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if memory in hashed and tensor.data_ptr():  # tied to an earlier tensor
            digest.update(hashed[memory].encode())
            continue
        values = tensor.detach()
        values = values.to(torch.bfloat16) if tensor.is_floating_point() else values
        digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        hashed[memory] = name
    if path is not None:
        keep(path, digest.hexdigest().encode())
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file; it is kept on disk, under the file's size and time.

    Raises:
        OSError: it cannot be read.
    """
    path = cache_folder() / f"file-{_key([str(file.resolve()), *_stat(file)])}.txt"
    if (saved := _read_digest(path)) is not None:
        return saved
    with file.open("rb") as opened:
        digest = digest_of(opened)
    keep(path, digest.encode())
    return digest


def record_source(base: PreTrainedModel, source: Path) -> None:
    """Note on a model that it was just loaded from the files of a folder, or from a single file."""
    if source.is_file():
        files = [source]
        setattr(base, _FILE, (source, _stat(source)))
    else:
        files = sorted({file for pattern in _WEIGHTS for file in source.glob(pattern)})
    stats = [[file.name, *_stat(file)] for file in files]
    key = _key([str(source.resolve()), stats, type(base).__name__, str(base.dtype)])
    setattr(base, _SOURCE, (key, _versions(base)))


def _stat(file: Path) -> tuple[int, int]:
    """Return a file's size and the time it was last written, which tell of another content."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _key(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _digest_file(base: PreTrainedModel) -> Path | None:
    """Return where a model's digest is kept; None if the model is changed since it was loaded."""
    key, versions = getattr(base, _SOURCE, (None, None))
    return cache_folder() / f"weights-{key}.txt" if key and versions == _versions(base) else None


def _versions(base: PreTrainedModel) -> list[tuple[int, int]]:
    """Return values that change when a weight is written into, moved or replaced."""
    tensors = base.state_dict(keep_vars=True).values()
    parts = (part for tensor in tensors for part in stored_tensors(tensor))
    return [(part.data_ptr(), part._version) for part in parts]


def _read_digest(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if len(text) == 64 and not text.strip("0123456789abcdef") else None


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of a tokenizer.

    It covers the vocabulary, the special tokens but the padding token, the chat template, and the
    tokens of some texts. A large vocabulary takes a second, so the last digest is kept on the
    tokenizer, for as long as its size and all the rest are the same.
    """
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    tokens = [list(tokenizer(text, verbose=False)["input_ids"]) for text in _PROBES]
    rest = [special, tokenizer.chat_template, tokens]
    known_for, known = getattr(tokenizer, _DIGEST, (None, ""))
    if known_for == (len(tokenizer), rest):
        return str(known)
    entries = tokenizer.get_vocab()
    vocabulary = [
        (token, place) for place, token in sorted(zip(entries.values(), entries, strict=True))
    ]
    parts = json.dumps([vocabulary, *rest], sort_keys=True)
    digest = hashlib.sha256(parts.encode()).hexdigest()
    setattr(tokenizer, _DIGEST, ((len(tokenizer), rest), digest))
    return digest
