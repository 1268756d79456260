"""`ChatTemplate`: renders a prompt in a tokenizer's chat template, and parses such a text back.

Templates are programs: some trim their input, some want content as a list of parts, most put words
of their own around a turn. So nothing is assumed about them: they render conversations with known
turns, and what surrounds these turns is taken to surround every turn. This knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from errata.errors import ConfigError
from errata.words.turns import TurnMarks

FIRST, ANSWER, SECOND = "Errata1st", "Errata2nd", "Errata3rd"
"""Contents of the turns in the known conversations; no template looks into them."""
_FAILURES = (TemplateError, TypeError, ValueError, KeyError, AttributeError)
_OFF = "set chat_template=false to ask in plain text."


@dataclass(frozen=True)
class Conversation:
    """A text given to a model, parsed.

    Attributes:
        questions: the user's turns, the last one first; the whole text where no turns are found.
        front, back: the text before and after the last of them.
        prompt: the question, if the text is that of a single plain prompt.
    """

    questions: tuple[str, ...]
    front: str = ""
    back: str = ""
    prompt: str | None = None


class ChatTemplate:
    """A tokenizer's chat template.

    Attributes:
        front, back: the text it puts around a single prompt.
        marks: the text it puts around the user's words in any turn.

    Raises:
        ConfigError: it fails on a plain question, or does not write it exactly once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._parts = False
        try:
            rendered = self.render(FIRST)
            if FIRST not in rendered:
                self._parts = True
                rendered = self.render(FIRST)
        except _FAILURES as error:
            raise ConfigError(
                f"the tokenizer's chat template fails on a plain question ({error}); {_OFF}"
            ) from error
        if (times := rendered.count(FIRST)) != 1:
            raise ConfigError(
                f"the tokenizer's chat template writes a question {times} times; {_OFF}"
            )
        self.front, _, self.back = rendered.partition(FIRST)
        self.marks = self._turn_marks()

    def render(self, prompt: str) -> str:
        """Return the text of a conversation that has one question."""
        return self._render(("user", prompt))

    def render_turns(self, *turns: tuple[str, str]) -> str:
        """Return the text of a conversation of (role, text), up to where the answer begins.

        Raises:
            ConfigError: the template does not write such a conversation.
        """
        try:
            return self._render(*turns)
        except _FAILURES as error:
            raise ConfigError(
                f"the model's chat template does not write this conversation ({error})."
            ) from error

    def parse(self, text: str) -> Conversation:
        """Parse a text into the user's turns."""
        spans = self.marks.spans(text)
        if not spans:
            return Conversation((text,))
        start, stop = spans[-1]
        questions = tuple(text[first:last].strip() for first, last in reversed(spans))
        return Conversation(questions, text[:start], text[stop:])

    def turn_starts(self, text: str) -> tuple[int, int]:
        """Return (start of the first turn, start of the user's last turn) in a text.

        Both are 0 where the text is a single turn, with nothing before it but what the template
        itself puts there.
        """
        spans = self.marks.spans(text)
        if not spans:
            return 0, 0
        first, last = spans[0][0], spans[-1][0]
        if len(spans) == 1 and _end_of_prefix(text[:first], self.front) == first:
            return 0, 0
        start = text.rfind(self.marks.opener.strip(), 0, last)
        return min(start, _end_of_prefix(text, self.front.removesuffix(self.marks.opener))), start

    def _render(self, *turns: tuple[str, str], generation_prompt: bool = True) -> str:
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": text}] if self._parts else text}
            for role, text in turns
        ]
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt
            )
        )

    def _turn_marks(self) -> TurnMarks:
        """Return the marks of turns, read off a known conversation; empty where none are found."""
        turns = ("user", FIRST), ("assistant", ANSWER)
        try:
            two_turns = self._render(*turns, ("user", SECOND))
            one_turn = self._render(*turns, generation_prompt=False)
        except _FAILURES:
            return TurnMarks()  # the template renders single turns only
        first_turn, _, rest = two_turns.partition(ANSWER)
        between = rest.partition(SECOND)[0]
        if SECOND not in two_turns or FIRST not in first_turn:
            return TurnMarks()
        answer_end = _common_start(one_turn.partition(ANSWER)[2], between)
        before_first, _, after_first = first_turn.partition(FIRST)
        opener = _common_end(before_first, between.removeprefix(answer_end))
        if not opener.strip():
            return TurnMarks(answer_end=answer_end)
        return TurnMarks(opener, _common_start(after_first, self.back), answer_end)


def _end_of_prefix(text: str, prefix: str) -> int:
    """Index after a prefix and the white space that follows; 0 where the text starts otherwise.

    White space is not compared: some tokenizers decode special tokens with spaces between them.
    """
    index = 0
    for character in "".join(prefix.split()):
        while index < len(text) and text[index].isspace():
            index += 1
        if text[index : index + 1] != character:
            return 0
        index += 1
    return index + len(text[index:]) - len(text[index:].lstrip())


def _common_start(one: str, other: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(character for character, _ in same)


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]
