"""What the console's parts are made of: texts, fields, tables, notices, questions to confirm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement
from starlette.exceptions import HTTPException

from errata.errors import ErrataError
from errata.serve.problems import problem_of

log = logging.getLogger(__name__)

Cell = str | Callable[[], Any]
"""A text, or a function that makes what stands in the cell."""


def text(tag: str, words: str, classes: str = "") -> Any:
    """Make an HTML element with a text."""
    return TextElement(tag=tag, text=words).classes(classes)


@contextmanager
def section(title: str, name: str) -> Iterator[Any]:
    """Make a part of the page with a heading."""
    with ui.element("section").classes("part").props(f'id={name} aria-labelledby="{name}-title"'):
        text("h2", title).props(f'id="{name}-title"')
        yield


def field(label: str, hint: str = "", lines: bool = False) -> Any:
    """Make a field for a line of text, or for several, with its label."""
    made = (ui.textarea if lines else ui.input)(label)
    rows = " rows=2 autogrow" if lines else ""
    made.props(f"outlined dense{rows} autocomplete=off").classes("field")
    return made.props(f'hint="{hint}"') if hint else made


def button(label: str, does: Callable[..., Any], main: bool = False, about: str = "") -> Any:
    """Make a button; `about` says to screen readers what it does more exactly."""
    looks = "unelevated" if main else "outline"
    made = ui.button(label, on_click=does).props(f"{looks} no-caps color=primary")
    if about:
        made.props["aria-label"] = f"{label}: {about}"
    return made


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Make a table; on narrow screens each row is a block, with the heads before its cells.

    Args:
        caption: what it is, for screen readers.
        heads: of the columns.
        rows: its cells.
    """
    with ui.element("table"):
        text("caption", caption)
        with ui.element("thead"), ui.element("tr"):
            for head in heads:
                text("th", head).props("scope=col")
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for head, cell in zip(heads, row, strict=True):
                        with ui.element("td") as made:
                            made.props["data-label"] = head
                            text("span", cell) if isinstance(cell, str) else cell()


def lines_of(value: str | None) -> list[str]:
    """Return the lines of a field that are not empty."""
    return [line.strip() for line in (value or "").splitlines() if line.strip()]


async def confirmed(question: str, about: str, yes: str) -> bool:
    """Ask whether something is meant; Escape says no."""
    with ui.context.client.content, ui.dialog() as dialog:
        dialog.props["aria-label"] = question
        dialog.on("hide", dialog.delete)  # then the keyboard is back at where it was
        with ui.card().classes("question"):
            text("h2", question)
            text("p", about)
            with ui.element("div").classes("buttons"):
                button(yes, lambda: dialog.submit(True), main=True).props("autofocus")
                button("Cancel", lambda: dialog.submit(False))
    return bool(await dialog)


class Notice:
    """A place that says what came of what was done, to screen readers as well."""

    def __init__(self) -> None:
        self._place = text("p", "", "notice").props("role=status tabindex=-1")
        self._place.set_visibility(False)

    def say(self, words: str, wrong: bool = False, focus: bool = False) -> None:
        """Say something; "" hides the place.

        Args:
            words: what is said.
            wrong: whether it is a problem.
            focus: whether the keyboard goes on from here, since what it was at is gone.
        """
        self._place.set_text(words)
        self._place.set_visibility(bool(words))
        self._place.classes(**{"add" if wrong else "remove": "wrong"})
        self._place.props(f"role={'alert' if wrong else 'status'}")
        if focus:
            self._place.run_method("focus")

    @contextmanager
    def problems(self) -> Iterator[None]:
        """Say in plain words what goes wrong within a `with` block."""
        self.say("")
        try:
            yield
        except Exception as error:
            self.say(said_of(error), wrong=True)


def said_of(error: Exception) -> str:
    """Return an error in a line for whoever sees the page; what is unexpected is logged."""
    if isinstance(error, HTTPException):
        return f"Not done: {error.detail}"
    problem = problem_of(error)
    if not isinstance(error, ErrataError):
        log.error("the console failed", exc_info=error)
    return f"Not done ({problem.title}): {problem.detail}"
