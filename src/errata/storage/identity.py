"""Digests that tell whether edits were written for a given base model and tokenizer.

The fingerprint (see `storage.cache`) samples every tensor; the weights' digest reads all of them.
For a model that is unchanged since it was loaded, the digest is kept on disk, under the sizes and
times of the files it was loaded from.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.storage.cache import cache_folder, fingerprint
from errata.storage.files import write_whole

log = logging.getLogger(__name__)

_SOURCE = "errata_files"
"""The attribute of a model that `record_source` sets."""
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
    """

    fingerprint: str
    weights: str | None
    tokenizer: str | None


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
    return Identity(current, weights_digest(base), tokenizer_digest(tokenizer))


@torch.no_grad()
def weights_digest(base: PreTrainedModel) -> str:
    """Return the SHA-256 of a model's state: names, shapes, and values, floats read as bf16."""
    path = _digest_file(base)
    if path is not None and (saved := _read_digest(path)) is not None:
        return saved
    digest, hashed = hashlib.sha256(), dict[tuple[Any, ...], str]()
    for name, tensor in sorted(base.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if memory in hashed and tensor.numel():  # tied to an earlier tensor
            digest.update(hashed[memory].encode())
            continue
        values = tensor.detach()
        values = values.to(torch.bfloat16) if tensor.is_floating_point() else values
        digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        hashed[memory] = name
    if path is not None:
        try:
            write_whole(path, digest.hexdigest().encode())
        except OSError as error:
            reason = error.strerror or error
            log.warning("%s cannot be kept (%s); it will be made again next time.", path, reason)
    return digest.hexdigest()


def record_source(base: PreTrainedModel, folder: Path) -> None:
    """Note on a model that it was just loaded from the files in a folder, see `weights_digest`."""
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    stats = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = json.dumps([str(folder.resolve()), stats, type(base).__name__, str(base.dtype)])
    setattr(base, _SOURCE, (hashlib.sha256(key.encode()).hexdigest()[:24], _versions(base)))


def _digest_file(base: PreTrainedModel) -> Path | None:
    """Return where a model's digest is kept; None if the model is changed since it was loaded."""
    key, versions = getattr(base, _SOURCE, (None, None))
    return cache_folder() / f"weights-{key}.txt" if key and versions == _versions(base) else None


def _versions(base: PreTrainedModel) -> list[tuple[int, int]]:
    """Return values that change when a weight is written into, moved or replaced."""
    tensors = base.state_dict(keep_vars=True).values()
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors]


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
