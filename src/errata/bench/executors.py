"""Measures runs in processes of this machine, or on a cluster with Ray.

Each run has a process of its own, so that peak memory is the run's and a crash stops no other. On a
cluster, the stream's folder must be shared by all machines: a run whose machine dies resumes on
another.
"""

from __future__ import annotations

import multiprocessing
import os
import queue as queue_module
import signal
import threading
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

from errata.bench.run import measure_run, save_failure
from errata.bench.stream import UNEDITED, Result, Run, Stream
from errata.cluster import RETRIES, cluster, distribute
from errata.errors import UsageError, suggest
from errata.progress import OnProgress

START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""How a run's process begins."""
OnRunProgress = Callable[[str, str, int, int], None]
"""Called with (run, what it is doing, how much of it is done, out of how much)."""
MEASURED = "measured"
"""What a run does that has ended."""


def measure(
    stream: Stream, runs: Sequence[Run], jobs: int, progress: OnRunProgress, executor: str = "local"
) -> list[Result]:
    """Measure every run on the stream, several at a time; the unedited model goes first and alone.

    The others find its answers in the stream's folder. Results that are there are kept. The results
    of a run that fails give the reason.

    Args:
        stream: the stream of edits.
        runs: the methods and their settings.
        jobs: runs at a time on this machine; a cluster takes as many as it has room for.
        progress: called while runs are measured.
        executor: of `EXECUTORS`.

    Returns:
        One result per run and checkpoint, in order of checkpoints.

    Raises:
        UsageError: there is no such executor, or it is not installed.
    """
    if executor not in EXECUTORS:
        raise UsageError(f"there is no executor {executor!r}.{suggest(executor, EXECUTORS)}")
    waiting = [run for run in runs if stream.missing(run)]
    for group in (
        [run for run in waiting if run.name == UNEDITED],
        [run for run in waiting if run.name != UNEDITED],
    ):
        if group:
            EXECUTORS[executor](group, stream, jobs, progress)
    return stream.results(runs)


def locally(runs: Sequence[Run], stream: Stream, jobs: int, progress: OnRunProgress) -> None:
    """Measure each run in a process of its own, `jobs` at a time."""
    context: Any = multiprocessing.get_context(START)
    if START == "forkserver":
        context.set_forkserver_preload([__name__])  # torch is imported once, not once a run
    messages = context.Queue()
    running: list[tuple[Run, Any]] = []
    queue = list(runs)
    try:
        while queue or running:
            while queue and len(running) < jobs:
                run = queue.pop(0)
                process = context.Process(
                    target=_run_in_process, args=(run, stream, messages), daemon=True
                )
                process.start()
                running.append((run, process))
            _pass_on(messages, progress)
            for run, process in [pair for pair in running if not pair[1].is_alive()]:
                running.remove((run, process))
                progress(run.name, MEASURED, 1, 1)
                if process.exitcode:
                    save_failure(
                        run, stream, f"its process ended with exit code {process.exitcode}"
                    )
    finally:
        for _, process in running:
            process.terminate()


def _run_in_process(run: Run, stream: Stream, messages: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _quietly(run, stream, lambda what, done, total: messages.put((run.name, what, done, total)))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, killed perhaps."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _quietly(run: Run, stream: Stream, progress: OnProgress) -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    measure_run(run, stream, progress)


def _pass_on(messages: Any, progress: OnRunProgress) -> None:
    """Show what has come in; wait a moment when nothing has."""
    try:
        progress(*messages.get(timeout=0.2))
        while True:
            progress(*messages.get_nowait())
    except queue_module.Empty:
        pass


def on_ray(runs: Sequence[Run], stream: Stream, jobs: int, progress: OnRunProgress) -> None:
    """Measure each run as a Ray task, on the cluster of $RAY_ADDRESS or a new local one.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
    """
    threads = stream.threads or 1
    with cluster(jobs * threads) as ray:
        task = ray.remote(
            num_cpus=threads, num_gpus=int(stream.device_map is not None), max_retries=RETRIES
        )(_run_on_ray)
        running = {task.remote(run, stream): run for run in runs}
        for run in runs:
            progress(run.name, "waiting or running", 0, 1)
        while running:
            (ended, *_), _ = ray.wait(list(running), num_returns=1)
            run = running.pop(ended)
            try:
                ray.get(ended)
                progress(run.name, MEASURED, 1, 1)
            except ray.exceptions.RayError as error:
                save_failure(run, stream, f"its task failed: {str(error).splitlines()[0]}")


def _run_on_ray(run: Run, stream: Stream) -> None:
    """Measure a run in a task; what its method can distribute are further tasks."""
    with distribute():
        _quietly(run, stream, lambda what, done, total: None)


EXECUTORS = MappingProxyType({"local": locally, "ray": on_ray})
