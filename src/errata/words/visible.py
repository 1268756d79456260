"""Other people's texts, made harmless to look at.

A terminal and a web page obey characters that move the cursor, set colours or change the direction
of writing.
"""

from __future__ import annotations

import re

_SENT = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
UNSEEN = re.compile(f"[{_SENT}]")
"""One such character, or half a surrogate pair."""
_UNSEEN_OR_BROKEN = re.compile(f"[\t\n{_SENT}]")


def visible(text: str) -> str:
    """Escape control characters, direction marks and lone surrogates, e.g. as \\x1b."""
    return UNSEEN.sub(_written_out, text)


def one_line(text: str) -> str:
    """Escape the same characters, and line breaks and tabs."""
    return _UNSEEN_OR_BROKEN.sub(_written_out, text)


def _written_out(sign: re.Match[str]) -> str:
    return sign[0].encode("unicode_escape").decode()
