"""The part of the console that looks back: versions, and how well their edits hold, as a plot."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from errata.errors import ErrataError
from errata.measures import MEANINGS
from errata.serve.console.elements import (
    Cell,
    Notice,
    button,
    confirmed,
    said_of,
    section,
    table,
    text,
)
from errata.serve.console.visit import Visit
from errata.serve.keys import Role
from errata.serve.measuring import MEASURES, MOST_EDITS, Measurement

PAGE = 10
"""Versions on a page."""
LOOKS = {
    "reliability": ("#1f5fbf", "circle", 15, "solid"),
    "generalization": ("#a3400d", "triangle", 11, "dashed"),
    "locality": ("#1b7a4b", "rect", 6, "dotted"),
}
"""Colour, sign, its size, and line of a measure: told apart without colour, and on one point."""
ASKED = {
    "reliability": "that prompt",
    "generalization": "the other wordings that were given with an edit, if any were",
    "locality": "beginnings of texts by the base model, and the edits' prompts about other names",
}
"""What measures are asked with."""
DONE = {
    "begin": "began",
    "edit": "wrote",
    "undo": "undid",
    "activate": "went back to",
    "refuse": "refused",
}
"""What was done, in words."""


class MeasuringPart:
    """Measures the version that answers, and draws the measurements.

    Args:
        visit: the page.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        with section("How well the edits hold", "measures"):
            with ui.element("dl"):
                for name in MEASURES:
                    text("dt", name)
                    text("dd", f"{MEANINGS[name]}; asked with {ASKED[name]}")
            with ui.element("div").classes("buttons"):
                button("Measure now", self.measure, main=True, about="the version that answers")
            self.notice = Notice()
            self._shown = ui.element("div")
        self._drawn: tuple[Measurement, ...] = ()
        self.show()

    async def measure(self) -> None:
        """Measure the model as it is."""
        with self.notice.problems():
            self.visit.let(Role.EDIT)
            self.notice.say("Measuring; answers go on, changes wait …")
            loop = asyncio.get_running_loop()

            def told(done: int, of: int) -> None:
                words = f"Measuring; {done} of {of} questions asked …"
                loop.call_soon_threadsafe(self.notice.say, words)

            found = await run_in_threadpool(self.visit.served.measurements.measure, told)
            self.notice.say(_told(found))
            self.show()

    def show(self) -> None:
        """Draw all measurements, if there is a new one."""
        found = tuple(self.visit.served.measurements.all)
        if found == self._drawn:
            return
        self._drawn = found
        self._shown.clear()
        with self._shown:
            ui.echart(plot_of(found), renderer="svg").classes("plot").props(
                'role=img aria-label="Shares of right answers by version; the table has them, too"'
            )
            rows: list[list[Cell]] = [_row(each) for each in reversed(found)]
            heads = ["Version", *(name.capitalize() for name in MEASURES), "Edits", "When"]
            table("Measured", heads, rows)
            _show_wrong(found[-1])


def _told(found: Measurement) -> str:
    told = f"Version {found.version} is measured."
    if found.drawn < found.edits:
        told += f" {found.drawn} of its {found.edits} edits were drawn: at most {MOST_EDITS} are."
    if "generalization" not in found.shares:
        told += (
            " Generalization is left out: no edit has other wordings. Give some when you add one."
        )
    elif found.worded < found.drawn:
        told += f" Only {found.worded} of {found.drawn} edits have other wordings."
    return told


def _row(each: Measurement) -> list[Cell]:
    shares = [
        f"{share.right} of {share.asked}" if (share := each.shares.get(name)) else "not asked"
        for name in MEASURES
    ]
    edits = f"{each.drawn} of {each.edits}" if each.drawn < each.edits else str(each.edits)
    return [str(each.version), *shares, edits, in_utc(each.time)]


def _show_wrong(found: Measurement) -> None:
    if not found.wrong:
        return
    with ui.element("details"):
        text("summary", f"The {len(found.wrong)} wrong answers of version {found.version}")
        rows: list[list[Cell]] = [
            [each.measure, each.prompt, each.wanted, each.after] for each in found.wrong
        ]
        table("Wrong answers", ["Measure", "Prompt", "Wanted", "Answer"], rows)


def plot_of(found: tuple[Measurement, ...]) -> dict[str, Any]:
    """Return the plot of measurements over versions; a measure never asked is not in it."""
    versions = [str(each.version) for each in found]
    series = []
    for name, (colour, sign, size, line) in LOOKS.items():
        shares = [each.shares.get(name) for each in found]
        if not any(shares):
            continue
        series.append(
            {
                "name": name,
                "type": "line",
                "symbol": sign,
                "symbolSize": size,
                "color": colour,
                "lineStyle": {"type": line, "width": 2},
                "data": [share and round(100 * share.right / share.asked, 1) for share in shares],
            }
        )
    return {
        "animation": False,
        "textStyle": {"fontFamily": "system-ui, sans-serif"},
        "legend": {"top": 0},
        "grid": {"left": 52, "right": 16, "top": 40, "bottom": 44},
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "category", "data": versions, "name": "version",
                  "nameLocation": "middle", "nameGap": 28},
        "yAxis": {"type": "value", "min": 0, "max": 100, "axisLabel": {"formatter": "{value} %"}},
        "series": series,
    }  # fmt: skip


class VersionsPart:
    """What was done, when, by whom; and the way back.

    Args:
        visit: the page.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit, self._page = visit, 0
        with section("Versions", "versions"):
            self.notice = Notice()
            self._list = ui.element("div")
            with ui.element("nav").classes("buttons").props('aria-label="Pages of versions"'):
                self._before = button("Newer", partial(self._turn, -1))
                self._after = button("Older", partial(self._turn, 1))
        visit.listeners.append(self.show)

    async def _turn(self, by: int) -> None:
        self._page += by
        await self.show()

    async def show(self) -> None:
        """Show a page of versions, the newest first."""
        last = max(0, (self.visit.service.version - 1) // PAGE)
        self._page = min(max(self._page, 0), last)
        newest = self.visit.service.version - self._page * PAGE
        first = max(0, newest - PAGE)
        try:
            found = await run_in_threadpool(self.visit.service.history, first, newest - first)
        except ErrataError as error:
            self.notice.say(said_of(error), wrong=True)
            return
        self._list.clear()
        with self._list:
            rows = [self._row(entry) for entry in reversed(found)]
            table("Versions", ["Version", "Time", "Who", "What", ""], rows)
        self._before.set_visibility(self._page > 0)
        self._after.set_visibility(self._page < last)

    def _row(self, entry: dict[str, Any]) -> list[Cell]:
        version, action = entry["version"], entry["action"]
        count = len(entry["edits"])
        edits = f" {count} edit{'s' if count != 1 else ''}" if count else ""
        what = DONE.get(action, action) + edits
        if entry["activates"] is not None:
            what += f" version {entry['activates']}"
        back: Cell = ""
        if version == self.visit.service.version:
            back = "answers now"
        elif self.visit.may(Role.ADMIN):
            back = partial(
                button, "Go back", partial(self.activate, version), about=f"to version {version}"
            )
        return [str(version), in_utc(entry["time"]), entry["actor"], what, back]

    async def activate(self, version: int) -> None:
        """Bring a version's edits back, once it is confirmed."""
        question = f"Go back to version {version}?"
        if not await confirmed(question, "It comes back as a new version.", "Go back"):
            return
        with self.notice.problems():
            actor = self.visit.let(Role.ADMIN)
            changed = await run_in_threadpool(self.visit.service.activate, version, actor)
            words = f"The edits of version {version} are back, as version {changed.version}."
            await self.visit.look()
            self.notice.say(words, focus=True)


def in_utc(time: str) -> str:
    """Return a time in UTC as it is read best."""
    return f"{time[:19].replace('T', ' ')} UTC" if time else ""
