"""`GrowingText`: an answer's text while its tokens come, cut at a stop string.

What may still change is held back: a character of which only some bytes are there, and the
beginning of what may become a stop string. Where stop strings overlap, the one that is complete
first counts (of two that end together, the longer), so that tokens of any length cut the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF_CHARACTER = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


class GrowingText:
    """The text of the tokens so far.

    Args:
        decode: gives the text of token ids.
        stops: texts before which the answer ends.

    Attributes:
        text: all of the text that is certain.
        stopped: whether a stop string was met.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(filter(None, stops))
        self._ids: list[int] = []
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Add a token; return the text that is certain since."""
        self._ids.append(token)
        return self._grown(self._decode(self._ids), whole=False)

    def end(self) -> str:
        """Return what was held back: no more tokens come."""
        return self._grown(self._decode(self._ids), whole=True)

    def _grown(self, text: str, whole: bool) -> str:
        if self.stopped:
            return ""
        met = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if met:
            _, begins = min(met)
            self.stopped, text = True, text[:begins]
        elif not whole:
            text = text.rstrip(HALF_CHARACTER)
            text = text[: len(text) - self._held_back(text)]
        new = text[len(self.text) :]
        self.text += new
        return new

    def _held_back(self, text: str) -> int:
        """How many last characters may be the beginning of a stop string."""
        return max(
            (
                length
                for stop in self._stops
                for length in range(1, len(stop))
                if text.endswith(stop[:length])
            ),
            default=0,
        )
