"""Which base model and which tokenizer edits were written for: digests that tell others apart. It
loads neither.

The quick fingerprint (see `cache`) samples every tensor; the full one reads all of them. It is kept
on disk for models that are, unchanged, what their files say, under the files' sizes and times.
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

_FILES = "errata_files"
"""The attribute of a model that says which files it was loaded from, see `loaded_from`."""
_WEIGHTS = ("*.safetensors", "*.bin", "*.json")
_PROBES = (
    "The capital of France is Paris, isn't it?",
    "  two spaces,\ta tab\nand a line; CAPITALS, camelCase, snake_case: 3.14 + 1,000 = ½?",
    "Ünïcödé e\u0301 ﬁ Ａ — “quotes” … Привет мир שלום مرحبا नमस्ते 東京は日本の首都です。 한국어 🙂",
)
"""Texts whose tokens tell how a tokenizer normalises and splits."""


@dataclass(frozen=True)
class Identity:
    """Digests of a base model and its tokenizer; those of an older artifact are not all known.

    Attributes:
        quick: the fingerprint of the model's sampled weights.
        weights: the digest of all of them.
        tokenizer: of what texts become.
    """

    quick: str
    weights: str | None
    tokenizer: str | None


def identity_of(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: Identity | None = None
) -> Identity:
    """The identity of a base model without edits and its tokenizer; what is known of the same model
    is not read again.
    """
    quick = fingerprint(base)
    if known is not None and known.quick == quick and known.weights and known.tokenizer:
        return known
    return Identity(quick, weights_digest(base), tokenizer_digest(tokenizer))


@torch.no_grad()
def weights_digest(base: PreTrainedModel) -> str:
    """SHA-256 of all that a model's state holds: names, shapes, and values, floating ones read as
    bf16.
    """
    kept = _kept(base)
    if kept is not None and (found := _read(kept)) is not None:
        return found
    digest, seen = hashlib.sha256(), dict[tuple[Any, ...], str]()
    for name, tensor in sorted(base.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place in seen and tensor.numel():  # tied to one that was read
            digest.update(seen[place].encode())
            continue
        read = tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor.detach()
        digest.update(read.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        seen[place] = name
    if kept is not None:
        try:
            write_whole(kept, digest.hexdigest().encode())
        except OSError as error:
            log.warning(
                "%s cannot be kept (%s); it will be made again next time.",
                kept,
                error.strerror or error,
            )
    return digest.hexdigest()


def loaded_from(base: PreTrainedModel, folder: Path) -> None:
    """Say that a model is what the files in this folder hold, so that they need not be read again
    to know it.
    """
    found = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    said = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in found]
    asked = json.dumps([str(folder.resolve()), said, type(base).__name__, str(base.dtype)])
    setattr(base, _FILES, (hashlib.sha256(asked.encode()).hexdigest()[:24], _versions(base)))


def _kept(base: PreTrainedModel) -> Path | None:
    """Where the digest of a model is kept that is what its files say, as far as is known."""
    key, versions = getattr(base, _FILES, (None, None))
    return cache_folder() / f"weights-{key}.txt" if key and versions == _versions(base) else None


def _versions(base: PreTrainedModel) -> list[tuple[int, int]]:
    """Changes when a weight is written into, moved or replaced."""
    return [
        (tensor.data_ptr(), tensor._version) for tensor in base.state_dict(keep_vars=True).values()
    ]


def _read(path: Path) -> str | None:
    try:
        said = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return said if len(said) == 64 and not said.strip("0123456789abcdef") else None


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the vocabulary, special tokens but the padding, chat template, and what some texts
    become.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda each: (each[1], each[0]))
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    tokens = [list(tokenizer(text, verbose=False)["input_ids"]) for text in _PROBES]
    said = json.dumps([vocabulary, special, tokenizer.chat_template, tokens], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()
