"""`TurnMarks`: the texts by which a chat template parts the turns of a conversation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TurnMarks:
    """What stands around the user's words in every turn.

    Attributes:
        opener, closer: before and after them; empty where that cannot be found out.
        answer_end: behind an answer.
    """

    opener: str = ""
    closer: str = ""
    answer_end: str = ""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return (start, end) of the user's words in every turn of a text."""
        opener, closer, answer_end = (
            self.opener.strip(),
            self.closer.strip(),
            self.answer_end.strip(),
        )
        spans: list[tuple[int, int]] = []
        start = 0
        while opener and (mark := text.find(opener, start)) >= 0:
            start = mark + len(opener)
            if spans and answer_end and not text[:mark].rstrip().endswith(answer_end):
                continue  # the user wrote the opener
            end_mark = closer or answer_end
            stop = text.find(end_mark, start) if end_mark else -1
            stop = len(text) if stop < 0 else stop
            words = text[start:stop]
            first = start + len(words) - len(words.lstrip())
            spans.append((min(first, stop), max(first, start + len(words.rstrip()))))
        return spans
