"""Texts of others in Markdown: whatever they hold, they stay text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from errata.words.visible import one_line

LONGEST = 200
"""Characters of a text in a card, at most."""

_SIGNS = re.compile(r"[!#$&*:<>@\[\\\]^_`{|}~]|\.(?=\S)")
"""ASCII signs to which Markdown, HTML, mathematics or a link may give a meaning.

Left out are those that have one only beside these, or at the start of a line, where no text of
others stands.
"""


def escaped(text: str, longest: int = LONGEST) -> str:
    """Return a text in one line of Markdown that shows as it is, cut if it is long."""
    shown = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return _SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", one_line(shown))


def code(text: str, language: str = "") -> str:
    """Return a block of code, whatever the text holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
