"""The part of the console that edits: try an edit, add it; find those in the model, undo one."""

from __future__ import annotations

from functools import partial

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from errata.edit import Edit
from errata.report import EditReport, EditResult
from errata.serve.console.elements import (
    Cell,
    Notice,
    button,
    confirmed,
    field,
    lines_of,
    section,
    table,
    text,
)
from errata.serve.console.visit import Visit, in_words
from errata.serve.edits import with_text
from errata.serve.keys import Role
from errata.serve.preview import Preview, Row
from errata.serve.schemas import EditIn
from errata.serve.service import Changed

PAGE = 10
"""Edits on a page."""
ON_CONFLICT = {
    "replace": "The new edit wins",
    "keep": "The old edit stays, the new one is left out",
    "error": "Nothing is written",
}
KINDS = {
    "edit": "the edit's own prompt",
    "prompt": "watched",
    "nearby": "of an edit about the same subject",
}
"""Why a preview asks a prompt."""


class WritingPart:
    """A form for an edit: tries it, or writes it.

    Args:
        visit: the page.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        with section("Add an edit", "add"):
            self.prompt = field("Prompt", "the question, as it will be asked")
            self.target = field("Target", "the answer that is wanted")
            self.subject = field("Subject (may be left out)", "who or what it is about, as there")
            for each in (self.prompt, self.target, self.subject):
                each.on("keydown.enter", self.add)
            with ui.element("details"):
                text("summary", "Other names, other wordings, prompts to watch, contradictions")
                self.aliases = field("Other names of the subject", "one a line", lines=True)
                self.wordings = field(
                    "Other wordings of the prompt", "one a line; asked when measuring only",
                    lines=True,
                )  # fmt: skip
                self.watched = field(
                    "Prompts to watch in a preview", "one a line; not kept", lines=True
                )
                self._kept = self.prompt, self.target, self.subject, self.aliases, self.wordings
                text("p", "If it contradicts an edit in the model:", "label").props("id=conflict")
                self.on_conflict = ui.radio(ON_CONFLICT, value="replace").props(
                    'role=radiogroup aria-labelledby="conflict" dense'
                )
            with ui.element("div").classes("buttons"):
                button("Add", self.add, main=True, about="write this edit into the model")
                button("Preview", self.preview, about="try this edit, and take it out again")
            self.notice = Notice()
            self._found = ui.element("div")

    def _edit(self) -> Edit:
        return EditIn(
            prompt=self.prompt.value.strip(),
            target=self.target.value.strip(),
            subject=self.subject.value.strip() or None,
            aliases=lines_of(self.aliases.value),
        ).made()

    async def add(self) -> None:
        """Write the edit."""
        self._found.clear()
        service, measurements = self.visit.service, self.visit.served.measurements
        with self.notice.problems():
            actor, edit = self.visit.let(Role.EDIT), self._edit()
            measurements.word(edit, lines_of(self.wordings.value))
            changed = await run_in_threadpool(service.edit, [edit], actor, self.on_conflict.value)
            report = changed.report or EditReport()
            results = await run_in_threadpool(service.check, report.written)
            self.notice.say(self._told(changed, results))
            for each in self._kept if report.written else ():
                each.set_value("")
            await self.visit.look()

    async def preview(self) -> None:
        """Try the edit, and show what it would change."""
        self._found.clear()
        with self.notice.problems():
            actor = self.visit.let(Role.EDIT)
            self.notice.say("Trying it; other answers wait meanwhile …")
            found = await run_in_threadpool(
                self.visit.service.preview,
                [self._edit()],
                lines_of(self.watched.value),
                actor,
                self.on_conflict.value,
            )
            changes = sum(row.before != row.after for row in found.rows)
            told = self._warned(found.conflicts, found.warnings)
            if found.refused is not None:
                told += f" It would not be kept: {found.refused}"
            self.notice.say(
                f"Nothing was written. {changes} of {len(found.rows)} answers would change. {told}"
            )
            with self._found:
                _compare(found)

    def _told(self, changed: Changed, results: list[EditResult]) -> str:
        report = changed.report or EditReport()
        if report.left_out:
            old = self.visit.described(report.conflicts[0][1])
            return f"Nothing was written: it contradicts an edit in the model, which stays: {old}"
        if not report.written:
            return "Nothing was written: the edit is in the model already."
        told = f"Written as version {changed.version}."
        for result in results:
            told += f" Its prompt is answered now: {result.answer}."
            if not result.success:
                told += " That is not the target."
        return f"{told} {self._warned(report.conflicts, report.warnings)}"

    def _warned(self, conflicts: list[tuple[str, str]], warnings: list[tuple[str, str]]) -> str:
        told = [f"It contradicts {self.visit.described(old)}." for _, old in conflicts]
        return " ".join([*told, *(f"Note: {warning}" for _, warning in warnings)])


def _compare(found: Preview) -> None:
    rows: list[list[Cell]] = [
        [partial(_prompt, row), row.before, partial(_after, row)] for row in found.rows
    ]
    table("Before and after", ["Prompt", "Before", "After"], rows)


def _prompt(row: Row) -> None:
    with ui.element("div"):
        text("span", row.prompt)
        text("p", KINDS[row.kind], "about")


def _after(row: Row) -> None:
    with ui.element("div"):
        text("span" if row.before == row.after else "mark", row.after)
        text("p", "stays" if row.before == row.after else "changes", "about")


class EditsPart:
    """The edits in the model: a list to search, in pages, and undo.

    Args:
        visit: the page.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit, self._page = visit, 0
        self._shown: list[Edit] = []
        with section("Edits in the model", "edits"):
            self.search = field("Search prompt, target and subject", "").props("debounce=200")
            self.search.on_value_change(self._searched)
            self.notice = Notice()
            self._list = ui.element("div")
            self._pages = ui.element("nav").classes("buttons").props('aria-label="Pages of edits"')
            with self._pages:
                self._before = button("Newer", partial(self._turn, -1))
                self._where = text("span", "").props("role=status")
                self._after = button("Older", partial(self._turn, 1))
        visit.listeners.append(self.show)

    def _searched(self) -> None:
        self._page = 0
        self.show()

    def _turn(self, by: int) -> None:
        self._page += by
        self.show()

    def show(self) -> None:
        """Show the page of edits that is wanted, the newest first."""
        found = with_text(self.visit.service.edits, self.search.value or "")
        found.reverse()
        last = max(0, (len(found) - 1) // PAGE)
        self._page = min(max(self._page, 0), last)
        first = self._page * PAGE
        shown = found[first : first + PAGE]
        if shown != self._shown or not shown:  # who is at a row with the keyboard stays there
            self._list.clear()
            with self._list:
                self._draw(shown)
        self._shown = shown
        end = first + len(shown)
        self._where.set_text(f"{first + 1} to {end} of {len(found)}")
        self._pages.set_visibility(bool(shown))
        self._before.set_visibility(self._page > 0)
        self._after.set_visibility(self._page < last)

    def _draw(self, edits: list[Edit]) -> None:
        if edits:
            heads = ["Prompt", "Target", "Subject", "Written", ""]
            table("Edits", heads, [self._row(edit) for edit in edits])
        else:
            text("p", "No edit has this text." if self.search.value else "There is no edit.")

    def _row(self, edit: Edit) -> list[Cell]:
        names = "; ".join([edit.subject or "", *edit.aliases]).strip("; ")
        when = (edit.time or "").replace("T", " ").replace("Z", " UTC")
        undo = partial(button, "Undo", partial(self.undo, edit), about=in_words(edit))
        return [edit.prompt, edit.target, names, when, undo]

    async def undo(self, edit: Edit) -> None:
        """Take an edit out, once it is confirmed."""
        if not await confirmed("Undo this edit?", in_words(edit), "Undo"):
            return
        with self.notice.problems():
            actor = self.visit.let(Role.EDIT)
            changed = await run_in_threadpool(self.visit.service.undo, [edit.id], actor)
            await self.visit.look()
            self.notice.say(f"Undone as version {changed.version}: {in_words(edit)}", focus=True)
