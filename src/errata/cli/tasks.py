"""`errata tasks`."""

from __future__ import annotations

from errata.cli import screen


def tasks() -> None:
    """List the benchmarks that `errata bench` knows."""
    from errata.bench.task import find_task, task_names

    shown = screen.table("task", "what it is", "file", "paper")
    for task in map(find_task, task_names()):
        shown.add_row(
            *map(screen.plain, (task.name, task.title, task.file or "made here", task.paper))
        )
    screen.show(shown)
