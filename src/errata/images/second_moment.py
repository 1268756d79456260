"""The second moment of a text encoder's keys, over a file's lines or texts of its own words."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.images.encoder import TextEncoder
from errata.images.settings import TEMPLATES, WeightSettings
from errata.progress import report
from errata.solvers.moments import SecondMoment
from errata.storage.cache import cached, fingerprint

BATCH = 64
WORDS = 8
"""Words in a made-up text, at most."""


def second_moment(encoder: TextEncoder, layer: int, settings: WeightSettings) -> SecondMoment:
    """Return C = E[k k^T] of a block's output matrix, over every token of texts; kept on disk.

    Raises:
        ConfigError: the corpus cannot be read.
    """
    texts = _lines(settings.corpus) if settings.corpus is not None else _made_up(encoder, settings)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    key = f"{fingerprint(encoder.model)} {encoder.name} {layer} {digest}"
    matrix = cached("second-moment", key, lambda: _measure(encoder, layer, texts), encoder.name)
    return SecondMoment(matrix, settings.ridge)


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(
            f"corpus {path!r} cannot be read ({reason}); give a text file."
        ) from error
    if not (texts := [line.strip() for line in lines if line.strip()]):
        raise ConfigError(f"corpus {path!r} is empty; give a text file, one text a line.")
    return texts


def _made_up(encoder: TextEncoder, settings: WeightSettings) -> list[str]:
    """Return texts of words that the tokenizer knows whole, half of them in a template."""
    vocabulary = encoder.tokenizer.get_vocab()
    words = sorted(
        word.removesuffix("</w>")
        for word in vocabulary
        if word.endswith("</w>") and word.removesuffix("</w>").isalpha() and len(word) > 5
    )
    if not words:
        raise ConfigError(
            f"the tokenizer of {encoder.name} has no whole words to make texts of; name a text "
            "file with --set corpus=FILE."
        )
    rng, texts = random.Random(settings.seed), []
    for _ in range(settings.texts):
        text = " ".join(rng.choices(words, k=rng.randint(1, WORDS)))
        texts.append(rng.choice(TEMPLATES).format(text) if rng.random() < 0.5 else text)
    return texts


@torch.no_grad()
def _measure(encoder: TextEncoder, layer: int, texts: list[str]) -> Tensor:
    hidden = encoder.matrix(layer).in_features
    total, tokens = torch.zeros(hidden, hidden, dtype=torch.float64), 0
    for start in range(0, len(texts), BATCH):
        report(f"second moment of {encoder.name}", start, len(texts))
        encoded = encoder.encode(texts[start : start + BATCH])
        keys = encoder.keys(encoded, layer)
        real = torch.arange(encoded.ids.shape[1])[None] <= encoded.ends[:, None]
        seen = keys[real.to(keys.device)].float()
        total += (seen.T @ seen).double().cpu()
        tokens += len(seen)
    return (total / max(1, tokens)).float()
