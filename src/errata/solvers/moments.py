"""The second moment C = E[k k^T] of a value matrix' keys: what the model uses for all that should
stay.

It is taken over every token of background text: the model's own (see `statistics.py`), or a file
that the user names.

C of few tokens is singular, and methods divide by it. So `SecondMoment.solve` divides by C + r I,
with r = `ridge` times the mean of C's eigenvalues: directions that the background hardly uses count
as used that little. With as many tokens as the original's (100,000 texts) a ridge of 1e-4 changes
next to nothing; 0 is the published formula.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.encoding import Row
from errata.lm.hooks import capture_input
from errata.storage.cache import cached, fingerprint

log = logging.getLogger(__name__)
TOKENS_AT_ONCE = 4096
SPARE = 0.01
TEXT_LENGTH = 32
"""New tokens in a background text of the model's own making."""


class SecondMoment:
    """C of one value matrix, with what methods make of it.

    Args:
        matrix: C, (d_in, d_in).
        ridge: what is added to the diagonal before dividing, as a share of the mean eigenvalue.
    """

    def __init__(self, matrix: Tensor, ridge: float = 0.0) -> None:
        self.matrix = matrix.double()
        self.ridge = ridge

    def solve(self, keys: Tensor) -> Tensor:
        """(C + r I)^-1 keys, for keys (d_in, n); in fp64.

        Raises:
            ConfigError: C is singular and there is no ridge.
        """
        solved: Tensor = torch.cholesky_solve(keys.to(self.matrix), self._root)
        return solved

    @cached_property
    def _root(self) -> Tensor:
        """The Cholesky factor of C + r I."""
        added = self.ridge * self.matrix.diagonal().mean()
        found = torch.linalg.cholesky_ex(
            self.matrix + added * torch.eye(len(self.matrix)).to(self.matrix)
        )
        if bool(found.info):
            raise ConfigError(
                f"ridge is {self.ridge}, and the second moment of the keys is singular; "
                "give more text (background, corpus) or a larger ridge."
            )
        root: Tensor = found.L
        return root


class NullSpace:
    """The directions of key space that the background hardly uses: what is written along them alone
    it does not see.

    Args:
        moment: C, (d_in, d_in).
        threshold: directions with a singular value of C below it belong to the space. It is
            measured in squared units of the keys, so it fits one layer only. None: the directions
            that together hold a hundredth of C's trace.

    Attributes:
        basis: (d_in, rank), orthonormal, in fp64.
    """

    def __init__(self, moment: Tensor, threshold: float | None = None) -> None:
        values, vectors = torch.linalg.eigh(moment.double())
        values = values.clamp(min=0)
        within = (
            values < threshold
            if threshold is not None
            else values.cumsum(0) <= SPARE * values.sum()
        )
        self.basis: Tensor = vectors[:, within]

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return self.basis.shape[1]

    @property
    def projector(self) -> Tensor:
        """P, (d_in, d_in): onto the space."""
        return self.basis @ self.basis.T


class KeyStatistics:
    """Second moments of a model's keys, layer by layer, made when they are first asked for.

    The base model must carry no patch then.

    Args:
        lm: the base model.
        corpus: a text file, one text a line; None: texts of the model's own making.
        background: how many of those.
        seed: their seed.
        ridge: see `SecondMoment`.
    """

    def __init__(
        self, lm: LM, corpus: str | None, background: int, seed: int, ridge: float = 0.0
    ) -> None:
        self.lm, self.corpus, self.background, self.seed, self.ridge = (
            lm,
            corpus,
            background,
            seed,
            ridge,
        )
        self._moments: dict[int, SecondMoment] = {}

    def check(self) -> None:
        """Make sure that there is text.

        Raises:
            ConfigError: the corpus is missing, not text, or too short.
        """
        if self.corpus is not None:
            _ = self.texts

    def __getitem__(self, layer: int) -> SecondMoment:
        """The second moment of a layer."""
        if layer not in self._moments:
            self._moments[layer] = SecondMoment(
                second_moment(self.lm, layer, self.texts).to(self.lm.device), self.ridge
            )
        return self._moments[layer]

    @cached_property
    def texts(self) -> list[str]:
        """The texts that the moments are taken over.

        Raises:
            ConfigError: the corpus is missing, not text, or too short.
        """
        if self.corpus is not None:
            return read_corpus(self.lm, self.corpus)
        texts = background_texts(self.lm, self.background, TEXT_LENGTH, self.seed, shortest=4)
        return [text for text in texts if text] or ["."]


def read_corpus(lm: LM, path: str) -> list[str]:
    """The lines of a text file that hold something.

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
    tokens, wanted = sum(len(row.ids) for row in _rows(lm, texts)), lm.architecture.d_in
    if tokens < wanted:
        raise ConfigError(
            f"corpus {path!r} holds {tokens} tokens; the second moment of the keys, {wanted} wide, needs as many. "
            "Give a longer file, one text a line, or leave corpus out."
        )
    return texts


def second_moment(lm: LM, layer: int, texts: Sequence[str]) -> Tensor:
    """C = E[k k^T], (d_in, d_in) in fp32 on the CPU, over all tokens of the texts; kept on disk
    (see `cache.py`).

    Texts are read as they are, without a chat template; a longer one is cut at the model's context.

    Raises:
        ConfigError: there is no such layer.
    """
    rows = sorted(_rows(lm, texts), key=lambda row: len(row.ids), reverse=True)
    lm.architecture.value_path(layer)
    said = hashlib.sha256(json.dumps([row.ids for row in rows]).encode()).hexdigest()
    key = f"{fingerprint(lm.model)} {lm.model.dtype} {lm.device.type} {layer} {said}"
    return cached("second-moment", key, lambda: _measured(lm, layer, rows))


@torch.no_grad()
def _measured(lm: LM, layer: int, rows: Sequence[Row]) -> Tensor:
    """Streamed: products of a batch in fp32, their sum in fp64."""
    log.info("second moment of layer %d over %d tokens", layer, sum(len(row.ids) for row in rows))
    module = lm.architecture.value_module(lm.model, layer)
    total, tokens, start = (
        torch.zeros(lm.architecture.d_in, lm.architecture.d_in, dtype=torch.float64),
        0,
        0,
    )
    while start < len(rows):  # the longest come first
        count = max(1, TOKENS_AT_ONCE // len(rows[start].ids))
        batch = lm.batch(rows[start : start + count])
        with capture_input(module) as seen:
            lm.run(batch, use_cache=False)
        mask = batch.attention_mask.bool().to(seen[0].device)
        keys = seen[0].reshape(*mask.shape, -1)[mask].float()
        total += (keys.T @ keys).double().cpu()
        tokens += len(keys)
        start += count
    return (total / max(1, tokens)).float()


def _rows(lm: LM, texts: Sequence[str]) -> list[Row]:
    """The texts as rows."""
    rows = []
    for text in texts:
        ids = tuple(lm.tokenizer(text)["input_ids"])[: lm.context_length or None]
        rows.append(Row(ids, len(ids)))
    return [row for row in rows if row.ids]
