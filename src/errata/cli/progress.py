"""Loads and measures a plan with a bar for every run, for `errata bench` and `errata compare`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.progress import TaskID

from errata.cli import screen
from errata.cli.opening import TRUSTED, loading, writing_into
from errata.cli.reading import write_text
from errata.errors import UsageError, quoted

if TYPE_CHECKING:
    from errata.bench.executors import OnRunProgress
    from errata.bench.plan import LoadedPlan, Plan
    from errata.bench.stream import Result


def loaded(plan: Plan) -> LoadedPlan:
    """Load a plan, and print on stderr what was left out."""
    from errata.bench.plan import load_plan

    with loading(plan.model):
        found = load_plan(dataclasses.replace(plan, trust_remote_code=TRUSTED.get()))
    for count, reason in (
        (found.too_long, "do not fit the model's context"),
        (found.empty, "have an empty target"),
    ):
        if count:
            screen.complain(f"{found.stream.data}: {count} records are left out: they {reason}.")
    if found.contradicted:
        screen.complain(
            f"{found.stream.data}: {found.contradicted} probes are left out: they rest on what "
            "another record edits."
        )
    return found


def measured(
    plan: Plan,
    found: LoadedPlan,
    wait: float,
    name: str,
    text_of: Callable[[Sequence[Result]], str],
) -> tuple[list[Result], str]:
    """Measure a loaded plan, and print failures on stderr.

    Args:
        plan: the plan.
        found: the same, loaded.
        wait: seconds to wait for another process that writes into the folder.
        name: of the file, in the folder, that the text is written into.
        text_of: makes the text from the results.

    Returns:
        The results, and the text.
    """
    from errata.bench.executors import measure

    folder = found.stream.folder
    with writing_into(folder, wait):
        with run_bars(len(found.runs)) as progress:
            results = measure(found.stream, found.runs, plan.jobs, progress, plan.executor)
        text = text_of(results)
        write_text(folder / name, text.removesuffix("\n") + "\n")
    for result in results:
        if result.failed:
            screen.complain(f"{result.name}, {result.edits} edits: {result.failed}")
    return results, text


def checkpoints(text: str, option: str) -> tuple[int, ...]:
    """Read numbers with commas between.

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
def run_bars(count: int) -> Iterator[OnRunProgress]:
    """Show a bar for every run, as it starts; without a terminal, a line of those that run."""
    from errata.bench.executors import MEASURED

    tasks: dict[str, TaskID] = {}
    latest: dict[str, str] = {}
    with screen.bars(transient=False) as shown, screen.lines(lambda: "; ".join(latest.values())):

        def progress(name: str, what: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name)
            text = f"{name}: {what} ({list(tasks).index(name) + 1} of {count})"
            latest[name] = screen.step_text(text, done, total)
            if what == MEASURED:
                del latest[name]
            shown.update(tasks[name], description=text, completed=done, total=total or None)

        yield progress
