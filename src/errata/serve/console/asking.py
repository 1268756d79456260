"""The part of the console that asks: one question, the answers with and without the edits."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from nicegui import ui

from errata.serve.answering import BASE, Answering, Choice, refuse_if_too_many
from errata.serve.console.elements import Notice, button, field, section, text
from errata.serve.console.visit import Visit
from errata.serve.keys import Role
from errata.serve.openai import ChatRequest, Message

LONGEST = 256
"""Tokens of an answer, at most."""
SHOWN = 50
"""Questions that stay on the page."""
OUTCOMES = {
    "say": "An edit gives this answer",
    "read": "The base model answers, and reads this edit before the question",
    "withhold": "The base model answers, without what this edit erased",
    "main": "No edit speaks here: the base model answers",
}
"""What the outcomes of an answer are, in words."""


class AskingPart:
    """Asks the base model and the edited one the same.

    Args:
        visit: the page.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit, self._asking = visit, asyncio.Lock()
        self._turns: dict[bool, list[Message]] = {True: [], False: []}
        with section("Ask", "ask"):
            self.question = field("Question").on("keydown.enter", self.ask)
            with ui.element("div").classes("buttons"):
                button("Ask", self.ask, main=True)
                self.goes_on = ui.checkbox("Send the turns before along")
            self.notice = Notice()
            self._shown = ui.element("div").props('role=log aria-label="Answers"')

    async def ask(self) -> None:
        """Ask what stands in the field, once the question before is answered."""
        if not (words := self.question.value.strip()):
            return
        async with self._asking:
            with self.notice.problems():
                self.visit.let(Role.ASK)
                refuse_if_too_many(self.visit.service)
                if not self.goes_on.value:
                    self._turns = {True: [], False: []}
                base, edited = self._turn(words)
                await asyncio.gather(
                    self._answer(words, False, base), self._answer(words, True, edited)
                )

    def _turn(self, words: str) -> tuple[Any, Any]:
        """Show a question above those before; return where its answers go."""
        with self._shown, ui.element("article") as turn:
            text("h3", words)
            with ui.element("div").classes("pair"):
                with ui.element("div").classes("answer") as base:
                    text("h4", "Base model, without edits")
                with ui.element("div").classes("answer") as edited:
                    text("h4", "With the edits")
        turn.move(target_index=0)
        for old in self._shown.default_slot.children[SHOWN:]:
            old.delete()
        return base, edited

    async def _answer(self, words: str, edited: bool, place: Any) -> None:
        served, turns = self.visit.served, self._turns[edited]
        turns.append(Message(role="user", content=words))
        with place:
            shown = text("p", "…", "said")
        request = ChatRequest(
            model=served.name if edited else served.name + BASE,
            messages=list(turns),
            temperature=0,
            max_tokens=LONGEST,
        )
        try:
            answering = Answering(served.service, served.name, request)
            async with aclosing(answering.pieces()) as pieces:
                async for _ in pieces:
                    if place.is_deleted:
                        return
                    shown.set_text(answering.choices[0].text.strip() or "…")
        except BaseException:
            turns.pop()
            shown.set_text("no answer")
            raise
        served.answered(answering)
        choice = answering.choices[0]
        if not choice.text.strip():
            shown.set_text("(an empty answer)")
        turns.append(Message(role="assistant", content=choice.text))
        with place:
            self._tell(choice, edited, place)

    def _tell(self, choice: Choice, edited: bool, place: Any) -> None:
        """Say below an answer which version gave it, and which edits spoke."""
        last, outcome = choice.last, choice.last.outcome
        cut = f" Cut after {LONGEST} tokens." if last.finish == "length" else ""
        if edited and outcome is None:
            text("p", "The method does not tell which edits speak.", "spoke")
        elif edited and outcome is not None:
            place.classes("spoken" if outcome.edit_ids else "")
            with ui.element("div").classes("spoke").props(f"data-outcome={outcome.name}"):
                text("span", OUTCOMES[outcome.name] + (":" if outcome.edit_ids else "."))
                for edit_id in outcome.edit_ids:
                    text("mark", self.visit.described(edit_id))
        if edited or cut:
            text("p", (f"Version {last.version}." if edited else "") + cut, "about")
