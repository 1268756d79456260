"""Commands of errata in processes of their own, forked from one in which all is imported."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from errata.bench import executors


def in_own_process(call: Callable[..., Any], *given: Any) -> Any:
    """What a call of a function at the top level of a module gives in a process of its own."""
    with ProcessPoolExecutor(1, _forkserver()) as process:
        return process.submit(call, *given).result()


def do_nothing() -> None:
    """Do nothing."""


def started(words: list[str], log: Path, before: Callable[[], object] = do_nothing) -> BaseProcess:
    """A running `errata ...`, the leader of a session, that writes what it says to a file.

    Args:
        words: those of the command line.
        log: the file.
        before: called in the process before the command; from the top level of a module.
    """
    process = _forkserver().Process(target=_run, args=(words, log, before))
    process.start()
    return process


def _forkserver() -> ForkServerContext:
    # Not forked from here: what tests did before (thread pools, Ray) does not outlive a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["errata.bench.executors", "errata.cli"])
    return context


def fork_children() -> None:
    """Let `errata bench` and `compare` fork their processes: here all is imported."""
    executors.START = "fork"


def no_file_beyond(size: int) -> None:
    """Let this process write no file of more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def ascii_only() -> None:
    """Make the streams of this process ASCII, as PYTHONIOENCODING does."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii")  # type: ignore[union-attr]


def _run(words: list[str], log: Path, before: Callable[[], object]) -> None:
    os.setsid()
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    before()
    sys.argv = ["errata", *words]
    from errata.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()
