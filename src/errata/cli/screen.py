"""What the verbs share of the screen: two streams, progress, one-line errors. It decides nothing.

Edits and answers are other people's texts, and a terminal obeys what it is sent. So everything is
printed here, and signs that move the cursor, colour what follows or turn its direction are shown,
not sent.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_SENT = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSEEN, _UNSEEN_OR_BROKEN = re.compile(f"[{_SENT}]"), re.compile(f"[\t\n{_SENT}]")


class _Stderr(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        super().print(
            *(visible(each) if isinstance(each, str) else each for each in objects), **options
        )


def visible(text: str) -> str:
    """A text with control signs, signs of direction and halves of surrogate pairs written out, e.g.
    \\x1b.
    """
    return _UNSEEN.sub(_written_out, text)


def one_line(text: str) -> str:
    """The same, with line breaks and tabs written out too."""
    return _UNSEEN_OR_BROKEN.sub(_written_out, text)


def _written_out(sign: re.Match[str]) -> str:
    return sign[0].encode("unicode_escape").decode()


err = _Stderr(stderr=True, highlight=False, soft_wrap=True)


def say(text: object) -> None:
    """A text on stdout, and a line break."""
    print(visible(str(text)), flush=True)


def complain(message: str) -> None:
    """One line on stderr, whatever the message looks like."""
    print(f"errata: {visible(' '.join(message.split()))}", file=sys.stderr)


def print_json(value: Any) -> None:
    """A JSON document on stdout; what is not to be sent to a terminal is escaped as JSON does it."""
    said = json.dumps(value, ensure_ascii=False, indent=2)
    print(_UNSEEN.sub(lambda sign: f"\\u{ord(sign[0]):04x}", said))


def show(table: Table) -> None:
    """A table on stdout; as wide as it likes where nobody looks at a terminal."""
    Console(highlight=False, width=None if sys.stdout.isatty() else 240).print(table)


def plain(value: object) -> Text:
    """A cell that shows its text as it is, brackets too, in one line."""
    return Text(one_line(str(value)))


def figure(share: float | None) -> str:
    """A share with three digits, or a dash where there is none."""
    return "-" if share is None else f"{share:.3f}"


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the house's style."""
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
def busy(what: str) -> Iterator[None]:
    """A spinner on stderr while something takes its time; libraries keep quiet meanwhile and
    afterwards.
    """
    with err.status(what):
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        yield


@contextlib.contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr; call what it gives with (done, total)."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done, of: shown.update(task, completed=done, total=of)


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr for work of several parts; call what it gives with (what is being
    done, done, total).
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        task = shown.add_task("", total=None)
        yield lambda what, done, of: shown.update(task, description=what, completed=done, total=of)
