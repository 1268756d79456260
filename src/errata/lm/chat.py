"""How a tokenizer's chat template writes a conversation, and how such a text is read back. It knows
no model.

Templates are programs: some trim what they are given, some want content as a list of parts, most
put words of their own around a turn. So nothing is assumed of them; they are asked to write
conversations whose turns are known, and what stands around those is what stands around all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from errata.errors import ConfigError

FIRST, ANSWER, SECOND = "Errata1st", "Errata2nd", "Errata3rd"
"""What is said in the conversations that templates are asked for; no template looks into it."""


@dataclass(frozen=True)
class Conversation:
    """What a text that a model is given says.

    Attributes:
        questions: what the user says, the last turn first; the whole text where no turns can be
            told apart.
        front, back: what stands around the last of them.
        prompt: the question, if this is the text that asks just that and nothing else.
    """

    questions: tuple[str, ...]
    front: str = ""
    back: str = ""
    prompt: str | None = None


class ChatTemplate:
    """A tokenizer's chat template.

    Attributes:
        front, back: what it puts around a single prompt.
        opener, closer: what it puts around what the user says in any turn; empty where that cannot
            be told.

    Raises:
        ConfigError: it does not write the prompt anywhere, so that the model would never be asked
            it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._parts = False
        try:
            written = self._write(("user", FIRST))
            if FIRST not in written:
                self._parts = True
                written = self._write(("user", FIRST))
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"the tokenizer's chat template fails on a plain question ({error}); {_OFF}"
            ) from error
        if written.count(FIRST) != 1:
            raise ConfigError(
                f"the tokenizer's chat template writes a question {written.count(FIRST)} times; {_OFF}"
            )
        self.front, _, self.back = written.partition(FIRST)
        self.opener = self.closer = self._end = ""
        self._learn_turns()

    def write(self, prompt: str) -> str:
        """The text that asks a prompt."""
        return self._write(("user", prompt))

    def read(self, text: str) -> Conversation:
        """What a text says."""
        spans = self._spans(text)
        if not spans:
            return Conversation((text,))
        start, stop = spans[-1]
        questions = tuple(text[first:last].strip() for first, last in reversed(spans))
        return Conversation(questions, text[:start], text[stop:])

    def turn(self, text: str) -> tuple[int, int]:
        """(where what comes before the first turn of a plain prompt ends, where the user's last
        turn begins) in a text.

        Both are 0 where the text has one turn, and before it nothing but what the template itself
        puts there.
        """
        spans = self._spans(text)
        if not spans or (
            len(spans) == 1 and _behind(text[: spans[0][0]], self.front) == spans[0][0]
        ):
            return 0, 0
        begin = text.rfind(self.opener.strip(), 0, spans[-1][0])
        return min(begin, _behind(text, self.front.removesuffix(self.opener))), begin

    def _write(self, *turns: tuple[str, str], asking: bool = True) -> str:
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": said}] if self._parts else said}
            for role, said in turns
        ]
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=asking
            )
        )

    def _learn_turns(self) -> None:
        try:
            talk = self._write(("user", FIRST), ("assistant", ANSWER), ("user", SECOND))
            ended = self._write(("user", FIRST), ("assistant", ANSWER), asking=False)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError):
            return  # one turn is all that it can write
        answered, between = (
            talk.partition(ANSWER)[0],
            talk.partition(ANSWER)[2].partition(SECOND)[0],
        )
        if SECOND not in talk or FIRST not in answered:
            return
        self._end = _common_start(ended.partition(ANSWER)[2], between)
        before_first = answered.partition(FIRST)[0]
        opener = _common_end(before_first, between.removeprefix(self._end))
        if opener.strip():
            self.opener, self.closer = (
                opener,
                _common_start(answered.partition(FIRST)[2], self.back),
            )

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where in a text the user's words begin and end, turn after turn."""
        opener, closer, end = self.opener.strip(), self.closer.strip(), self._end.strip()
        spans: list[tuple[int, int]] = []
        place = 0
        while opener and (found := text.find(opener, place)) >= 0:
            start = found + len(opener)
            place = start
            if spans and end and not text[:found].rstrip().endswith(end):
                continue  # the user's own words
            stop = text.find(closer or end, start) if closer or end else -1
            stop = len(text) if stop < 0 else stop
            said = text[start:stop]
            begin = start + len(said) - len(said.lstrip())
            spans.append((min(begin, stop), max(begin, start + len(said.rstrip()))))
        return spans


def _behind(text: str, front: str) -> int:
    """Where a text goes on behind what it begins with, white space aside; 0 where it begins
    otherwise.

    Some tokenizers put spaces between special tokens when they decode.
    """
    place = 0
    for sign in "".join(front.split()):
        while place < len(text) and text[place].isspace():
            place += 1
        if text[place : place + 1] != sign:
            return 0
        place += 1
    return place + len(text[place:]) - len(text[place:].lstrip())


def _common_start(one: str, other: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(sign for sign, _ in same)


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


_OFF = "set chat_template=false to ask in plain text."
