"""Puts a question into the form that a model is asked in: chat template, or lines of text.

A conversation is given as a prompt that has the template's own turn marks in it: in the template
it is the conversation, token for token, so whatever takes prompts takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jinja2 import TemplateError

from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.probes import Probes
from errata.probes.question import LONG_ANSWER_LENGTH, Question

ASKED, ANSWERED = "Question:", "Answer:"
_FAILURES = (TemplateError, TypeError, ValueError, KeyError, AttributeError)


@dataclass(frozen=True)
class Prompt:
    """A question as a model is asked it.

    Attributes:
        text: the prompt.
        front: the place in the text where the user's last words begin.
        end: the answer is read up to this text; None: all of it is.
    """

    text: str
    front: int = 0
    end: str | None = None

    def behind(self, context: str) -> str:
        """Return the prompt with a context in front of the user's last words."""
        return self.text[: self.front] + context + self.text[self.front :]

    def answer(self, text: str) -> str:
        """Return the answer in what a model has generated."""
        return text if self.end is None else text.partition(self.end)[0].strip()


@dataclass(frozen=True)
class AskedProbe:
    """A question, the prompt that asks it, and the tokens after which its answer is cut."""

    question: Question
    prompt: Prompt
    length: int


def asked_probes(
    lm: LM, probes: Probes, max_new_tokens: int
) -> tuple[list[AskedProbe], Mapping[str, int]]:
    """Return the probes as a model is asked them, and by kind the edits that lack them.

    What does not fit the model's context or its chat template is left out, and counted.
    """
    asked = []
    lost: dict[str, set[str]] = {}
    for question in probes.questions:
        try:
            prompt = prompt_for(lm, question)
            if prompt is not None:
                lm.encode_prompt(prompt.text)
        except PromptTooLongError:
            prompt = None
        if prompt is None:
            lost.setdefault(question.kind, set()).add(question.edit_id)
            continue
        length = max(LONG_ANSWER_LENGTH, max_new_tokens) if question.long else max_new_tokens
        asked.append(AskedProbe(question, prompt, length))
    kinds = dict.fromkeys([*probes.left_out, *lost])
    return asked, {kind: probes.left_out.get(kind, 0) + len(lost.get(kind, ())) for kind in kinds}


def prompt_for(lm: LM, question: Question) -> Prompt | None:
    """Return a question as a model is asked it; None where its template takes one turn only."""
    turns = question.turns
    if lm.template is not None:
        if len(turns) == 1:
            return Prompt(turns[0])
        rendered = _rendered(lm, turns)
        front, back = lm.template.front, lm.template.back
        if rendered is None or not (rendered.startswith(front) and rendered.endswith(back)):
            return None
        text = rendered[len(front) : len(rendered) - len(back)]
        return Prompt(text, len(text) - len(turns[-1])) if text.endswith(turns[-1]) else None
    if question.raw:
        earlier = " ".join(_sentences(turns[:-1]))
        text = f"{earlier} {turns[-1]}" if earlier else turns[-1]
        return Prompt(text)
    lines = "".join(
        f"{ASKED} {turn}\n{ANSWERED}" if number % 2 == 0 else f" {turn}\n"
        for number, turn in enumerate(turns)
    )
    return Prompt(lines, end=f"\n{ASKED}" if question.long else "\n")


def _rendered(lm: LM, turns: tuple[str, ...]) -> str | None:
    """Return a conversation in the chat template; None where it cannot render one."""
    roles = ("user", "assistant")
    for in_parts in (False, True):
        messages = [
            {
                "role": roles[number % 2],
                "content": [{"type": "text", "text": turn}] if in_parts else turn,
            }
            for number, turn in enumerate(turns)
        ]
        try:
            text = str(
                lm.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        except _FAILURES:
            continue
        if all(turn in text for turn in turns):
            return text
    return None


def _sentences(turns: tuple[str, ...]) -> list[str]:
    """Return earlier turns as sentences: a beginning and its completion are one."""
    found: list[str] = []
    for asked, answered in zip(turns[::2], turns[1::2], strict=True):
        whole = asked.rstrip().endswith((".", "!"))
        found.append(asked if whole else f"{asked} {answered}")
    return found
