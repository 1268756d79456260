"""The second moment C = E[k k^T] of a value matrix's keys: knowledge that edits preserve.

It is taken over every token of background text: self-generated (see `lm/background.py`), or a file
that the user names.

C of few tokens is singular, and methods need its inverse. So `SecondMoment.solve` inverts C + r I,
with r = `ridge` times the mean eigenvalue of C: directions that the background hardly uses count as
used that little. With as many tokens as in the publication (100,000 texts) a ridge of 1e-4 changes
next to nothing; 0 is the published formula.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.encoding import Row
from errata.lm.hooks import capture_input, stop_after
from errata.storage.cache import cached, fingerprint

log = logging.getLogger(__name__)
TOKENS_PER_BATCH = 4096
TEXT_LENGTH = 32
"""New tokens in a self-generated background text."""


class SecondMoment:
    """C of one value matrix, in fp64, and its regularised inverse.

    Args:
        matrix: C, (d_in, d_in).
        ridge: added to the diagonal before inverting, as a share of the mean eigenvalue.
    """

    def __init__(self, matrix: Tensor, ridge: float = 0.0) -> None:
        self.matrix = matrix.double()
        self.ridge = ridge

    def solve(self, keys: Tensor) -> Tensor:
        """Return (C + r I)^-1 keys, for keys (d_in, n), in fp64.

        Raises:
            ConfigError: C is singular and there is no ridge.
        """
        solution: Tensor = torch.cholesky_solve(keys.to(self.matrix), self._cholesky)
        return solution

    @cached_property
    def _cholesky(self) -> Tensor:
        """The Cholesky factor of C + r I."""
        added = self.ridge * self.matrix.diagonal().mean()
        regularised = self.matrix + added * torch.eye(len(self.matrix)).to(self.matrix)
        result = torch.linalg.cholesky_ex(regularised)
        if bool(result.info):
            raise ConfigError(
                f"ridge is {self.ridge}, and the second moment of the keys is singular; "
                "give more text (background, corpus) or a larger ridge."
            )
        factor: Tensor = result.L
        return factor


class KeyStatistics:
    """Second moments of a model's keys, of all layers computed at the first use.

    The base model must carry no patch at that time.

    Args:
        lm: the base model.
        layers: those whose second moments are used.
        corpus: a text file, one text a line; None: self-generated texts.
        background: the number of self-generated texts.
        seed: their seed.
        ridge: see `SecondMoment`.
    """

    def __init__(
        self,
        lm: LM,
        layers: Iterable[int],
        corpus: str | None,
        background: int,
        seed: int,
        ridge: float = 0.0,
    ) -> None:
        self.lm, self.layers = lm, list(layers)
        self.corpus, self.background = corpus, background
        self.seed, self.ridge = seed, ridge
        self._moments: dict[int, SecondMoment] = {}

    def check(self) -> None:
        """Make sure that the corpus can be read.

        Raises:
            ConfigError: the corpus is missing, not text, or too short.
        """
        if self.corpus is not None:
            _ = self.texts

    def __getitem__(self, layer: int) -> SecondMoment:
        """The second moment of a layer."""
        if not self._moments:
            matrices = second_moments(self.lm, self.layers, self.texts)
            self._moments = {
                each: SecondMoment(matrix.to(self.lm.device), self.ridge)
                for each, matrix in matrices.items()
            }
        return self._moments[layer]

    @cached_property
    def texts(self) -> list[str]:
        """The background texts.

        Raises:
            ConfigError: the corpus is missing, not text, or too short.
        """
        if self.corpus is not None:
            return read_corpus(self.lm, self.corpus)
        texts = background_texts(self.lm, self.background, TEXT_LENGTH, self.seed)
        return [text for text in texts if text] or ["."]


def read_corpus(lm: LM, path: str) -> list[str]:
    """Return the lines of a text file that are not blank.

    Raises:
        ConfigError: there is no such file, it is not text, or it has fewer tokens than a key has
            dimensions.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"corpus {path!r} cannot be read ({error.strerror or error}); give a text file."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"corpus {path!r} is not UTF-8 text (byte {error.start + 1}).") from error
    texts = [line.strip() for line in lines if line.strip()]
    tokens, d_in = sum(len(row.ids) for row in _encode(lm, texts)), lm.architecture.d_in
    if tokens < d_in:
        raise ConfigError(
            f"corpus {path!r} holds {tokens} tokens; the second moment of the keys, {d_in} wide, "
            "needs as many. Give a longer file, one text a line, or leave corpus out."
        )
    return texts


def second_moments(lm: LM, layers: Sequence[int], texts: Sequence[str]) -> dict[int, Tensor]:
    """Return C = E[k k^T] of each layer, (d_in, d_in) in fp32 on the CPU, over all tokens of texts.

    They come from the disk cache, or are computed, all in one pass over the texts.

    No chat template is put around the texts; each is cut at the model's context.

    Raises:
        ConfigError: there is no such layer.
    """
    rows = sorted(_encode(lm, texts), key=lambda row: len(row.ids), reverse=True)
    for layer in layers:
        lm.architecture.value_path(layer)
    digest = hashlib.sha256(json.dumps([row.ids for row in rows]).encode()).hexdigest()
    measured: dict[int, Tensor] = {}

    def measure(layer: int) -> Tensor:
        if not measured:
            measured.update(_measure(lm, layers, rows))
        return measured[layer]

    base = f"{fingerprint(lm.model)} {lm.model.dtype} {lm.device.type}"
    return {
        layer: cached("second-moment", f"{base} {layer} {digest}", partial(measure, layer), lm.name)
        for layer in layers
    }


def second_moment(lm: LM, layer: int, texts: Sequence[str]) -> Tensor:
    """Return C of one layer, see `second_moments`."""
    return second_moments(lm, [layer], texts)[layer]


@torch.no_grad()
def _measure(lm: LM, layers: Sequence[int], rows: Sequence[Row]) -> dict[int, Tensor]:
    """Compute each layer's C batch by batch: products of a batch in fp32, their sum in fp64."""
    log.info("second moments of layers %s, %d tokens", layers, sum(len(row.ids) for row in rows))
    modules = {layer: lm.architecture.value_module(lm.model, layer) for layer in layers}
    d_in, tokens, start = lm.architecture.d_in, 0, 0
    totals = {layer: torch.zeros(d_in, d_in, dtype=torch.float64) for layer in layers}
    while start < len(rows):  # the longest come first
        count = max(1, TOKENS_PER_BATCH // len(rows[start].ids))
        batch = lm.batch(rows[start : start + count])
        with ExitStack() as hooks:
            inputs = {
                layer: hooks.enter_context(capture_input(module))
                for layer, module in modules.items()
            }
            hooks.enter_context(stop_after(modules[max(layers)]))
            lm.run(batch, use_cache=False)
        for layer, total in totals.items():
            (seen,) = inputs[layer]
            mask = batch.attention_mask.bool().to(seen.device)
            keys = seen.reshape(*mask.shape, -1)[mask].float()
            total += (keys.T @ keys).double().cpu()
        tokens += int(batch.attention_mask.sum())
        start += count
    return {layer: (total / max(1, tokens)).float() for layer, total in totals.items()}


def _encode(lm: LM, texts: Sequence[str]) -> list[Row]:
    """Return the texts that have any tokens as rows."""
    rows = []
    for text in texts:
        ids = tuple(lm.tokenizer(text)["input_ids"])[: lm.context_length or None]
        rows.append(Row(ids, len(ids)))
    return [row for row in rows if row.ids]
