"""`TokenTexts`: token ids as text, and where each of them stands in it; without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Span = tuple[int, int]
"""(start, end) in a text's characters."""


class TokenTexts:
    """The bytes of each token of a vocabulary.

    Args:
        content: (bytes,) uint8, of all tokens, one after the other.
        ends: (vocabulary,), where each token's bytes end in it.
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self.content, self.ends = content.tobytes(), ends

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> TokenTexts:
        """Take the bytes of each token, in the order of their ids."""
        return cls(
            np.frombuffer(b"".join(pieces), dtype=np.uint8),
            np.cumsum([len(piece) for piece in pieces], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, token: int) -> bytes:
        """Return a token's bytes; none of one that is not in the vocabulary."""
        if not 0 <= token < len(self.ends):
            return b""
        return self.content[self.ends[token - 1] if token else 0 : self.ends[token]]

    def read(self, ids: Sequence[int]) -> tuple[str, list[Span]]:
        """Return the text of token ids, and the characters that each of them has a part in."""
        pieces = [self[token] for token in ids]
        text = b"".join(pieces).decode("utf-8", "replace")
        whole = b"".join(pieces)
        if len(text) == len(whole):  # one byte each: no need to look
            ends = np.cumsum([len(piece) for piece in pieces]).tolist()
            return text, list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []
        spans, before = list[Span](), 0
        for piece in pieces:
            after = before + len(piece)
            start = len(whole[:before].decode("utf-8", "ignore"))
            spans.append((start, max(start, len(whole[:after].decode("utf-8", "replace")))))
            before = after
        return text, spans
