"""Where contenders run: in processes of this machine, or spread over a cluster by Ray. It measures
nothing.

A process a contender makes its peak memory its own, and one that dies takes no other with it. On a
cluster, the stream's folder must be one that all machines see: a contender whose machine dies is
started on another, where it left off.
"""

from __future__ import annotations

import multiprocessing
import queue as queue_module
import signal
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

from errata.bench.run import run
from errata.bench.stream import Contender, Stream, blank_row
from errata.cluster import RETRIES, cluster, distribute

Shown = Callable[[str, str, int, int], None]
"""Called with (contender, what it is doing, how much of it is done, out of how much)."""


def locally(racers: Sequence[Contender], stream: Stream, jobs: int, shown: Shown) -> None:
    """Each contender in a process of its own, `jobs` at a time."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    running: list[tuple[Contender, Any]] = []
    queue = list(racers)
    try:
        while queue or running:
            while queue and len(running) < jobs:
                racer = queue.pop(0)
                process = context.Process(target=_race, args=(racer, stream, messages), daemon=True)
                process.start()
                running.append((racer, process))
            _pass_on(messages, shown)
            for racer, process in [pair for pair in running if not pair[1].is_alive()]:
                running.remove((racer, process))
                if process.exitcode:
                    _note_death(
                        racer, stream, f"its process ended with exit code {process.exitcode}"
                    )
    finally:
        for _, process in running:
            process.terminate()


def _race(racer: Contender, stream: Stream, messages: Any) -> None:
    """What a contender's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    _quietly(racer, stream, lambda what, done, total: messages.put((racer.name, what, done, total)))


def _quietly(racer: Contender, stream: Stream, tell: Callable[[str, int, int], None]) -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    run(racer, stream, tell)


def _pass_on(messages: Any, shown: Shown) -> None:
    """Show what has come in; wait a moment when nothing has."""
    try:
        shown(*messages.get(timeout=0.2))
        while True:
            shown(*messages.get_nowait())
    except queue_module.Empty:
        pass


def _note_death(racer: Contender, stream: Stream, why: str) -> None:
    """Rows that say so, where a contender ended without having measured."""
    for edits in stream.checkpoints:
        if stream.kept_row(racer, edits) is None:
            blank_row(racer, stream, edits, failed=why).save(stream.row_file(racer.name, edits))


def on_ray(racers: Sequence[Contender], stream: Stream, jobs: int, shown: Shown) -> None:
    """Each contender as a task of Ray's: on the cluster of $RAY_ADDRESS, else on one that is begun
    here.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
    """
    threads = stream.threads or 1
    with cluster(jobs * threads) as ray:
        task = ray.remote(
            num_cpus=threads, num_gpus=int(stream.device_map is not None), max_retries=RETRIES
        )(_race_on_ray)
        running = {task.remote(racer, stream): racer for racer in racers}
        for racer in racers:
            shown(racer.name, "waiting or running", 0, 1)
        while running:
            (ended, *_), _ = ray.wait(list(running), num_returns=1)
            racer = running.pop(ended)
            try:
                ray.get(ended)
                shown(racer.name, "measured", 1, 1)
            except ray.exceptions.RayError as error:
                _note_death(racer, stream, f"its task failed: {str(error).splitlines()[0]}")


def _race_on_ray(racer: Contender, stream: Stream) -> None:
    """What a task does; its progress is the stream's folder. What its method can spread are tasks
    of their own.
    """
    with distribute():
        _quietly(racer, stream, lambda what, done, total: None)


EXECUTORS = MappingProxyType({"local": locally, "ray": on_ray})
