"""What `errata bench` and `errata compare` share: the stream that is asked for, and a bar for every
contender that runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from errata.cli import screen
from errata.cli.opening import TRUSTED, loading
from errata.errors import UsageError, quoted

if TYPE_CHECKING:
    from errata.bench.executors import Shown
    from errata.bench.plan import Plan, Planned


def planned(plan: Plan) -> Planned:
    """What comes of a plan, and on stderr what was left out."""
    from errata.bench.plan import stream_of

    with loading(plan.model):
        found = stream_of(dataclasses.replace(plan, trust_remote_code=TRUSTED.get()))
    for count, why in (
        (found.too_long, "do not fit the model's context"),
        (found.empty, "have an empty target"),
    ):
        if count:
            screen.complain(f"{found.stream.data}: {count} records are left out: they {why}.")
    return found


def checkpoints(text: str, option: str) -> tuple[int, ...]:
    """Numbers with commas between.

    Raises:
        UsageError: they are not.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} takes numbers with commas between, e.g. 1,10,100; got {quoted(text)}."
        ) from None


@contextlib.contextmanager
def race_bars(count: int) -> Iterator[Shown]:
    """A bar for every contender, as it starts."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen.err, disable=not screen.err.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def shown(name: str, what: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name)
            text = f"{name}: {what} ({list(tasks).index(name) + 1} of {count})"
            progress.update(tasks[name], description=text, completed=done, total=total or None)

        yield shown
