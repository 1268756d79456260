"""Prints for all verbs: two streams, progress, one-line errors.

Edits and answers are other people's texts, and a terminal obeys control characters in them. So
everything is printed here, and characters that move the cursor, set colours or change the direction
are shown escaped.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from errata.progress import OnProgress, reported_to
from errata.words.visible import UNSEEN, one_line, visible

FIRST_LINE, NEXT_LINE = 1.0, 10.0
"""Seconds after which a line of progress is printed where there is no terminal."""


class _Stderr(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        super().print(
            *(visible(each) if isinstance(each, str) else each for each in objects), **options
        )


err = _Stderr(stderr=True, highlight=False, soft_wrap=True)


def say(text: object) -> None:
    """Print a text on stdout, and a line break."""
    print(visible(str(text)), flush=True)


def complain(message: str) -> None:
    """Print a message on stderr, in one line."""
    print(f"errata: {visible(' '.join(message.split()))}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a JSON document on stdout, with what no terminal should get escaped."""
    document = json.dumps(value, ensure_ascii=False, indent=2)
    print(UNSEEN.sub(lambda sign: f"\\u{ord(sign[0]):04x}", document))


def show(table: Table) -> None:
    """Print a table on stdout; without a terminal, at full width."""
    Console(highlight=False, width=None if sys.stdout.isatty() else 240).print(table)


def plain(value: object) -> Text:
    """Make a cell that shows its text as it is, brackets too, in one line."""
    return Text(one_line(str(value)))


def figure(share: float | None) -> str:
    """Format a share with three digits, or a dash where there is none."""
    return "-" if share is None else f"{share:.3f}"


def table(*columns: str, title: str | None = None) -> Table:
    """Make an empty table in the common style."""
    made = Table(
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


@contextlib.contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that slow work is going on, and silence libraries from then on.

    It yields a function that changes what is shown.
    """
    shown = what

    def change(text: str) -> None:
        nonlocal shown
        shown = text
        status.update(plain(text))

    with err.status(plain(what)) as status, lines(lambda: shown):
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        yield change


@contextlib.contextmanager
def lines(current: Callable[[], str]) -> Iterator[None]:
    """Without a terminal, print what is being done, on stderr: after a second, then every ten.

    Nothing is printed if $ERRATA_PROGRESS is "off".
    """
    if err.is_terminal or os.environ.get("ERRATA_PROGRESS") == "off":
        yield
        return
    ended, began = threading.Event(), time.monotonic()

    def tell() -> None:
        wait = FIRST_LINE
        while not ended.wait(wait):
            if text := current():
                complain(f"{text} ({time.monotonic() - began:.0f} s)")
            wait = NEXT_LINE

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def bars(transient: bool) -> Progress:
    """Make an area for progress bars on stderr; it shows nothing without a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err, transient=transient, disable=not err.is_terminal)


def step_text(what: str, done: int, total: int) -> str:
    """Put a step of long work into words; a total of 0 is unknown."""
    return f"{what}: {done} of {total}" if total else what


@contextlib.contextmanager
def steps() -> Iterator[OnProgress]:
    """Show progress on stderr; yield a function of (what is being done, done, total).

    What is reported from below (see `errata.progress`) is shown, too.
    """
    line = ""
    with bars(transient=True) as shown, lines(lambda: line):
        task = shown.add_task("", total=None)

        def show_step(what: str, done: int, total: int) -> None:
            nonlocal line
            line = step_text(what, done, total)
            shown.update(task, description=what, completed=done, total=total)

        with reported_to(show_step):
            yield show_step
