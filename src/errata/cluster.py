"""Distribute parts of a piece of work over a cluster of machines, by Ray. This knows no method."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from errata.errors import UsageError

RETRIES = 3
"""How often a task is started again whose worker died."""

_DISTRIBUTED: ContextVar[bool] = ContextVar("distributed", default=False)


@contextlib.contextmanager
def cluster(cpus: int | None = None) -> Iterator[Any]:
    """Connect to Ray: a running one, the cluster at $RAY_ADDRESS, or a new one on this machine.

    What was connected or started is shut down on exit.

    Args:
        cpus: processors that a Ray started here takes; None takes all.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("the executor 'ray' needs Ray: pip install 'errata[ray]'.") from error
    starts = not ray.is_initialized()
    if starts:
        address = os.environ.get("RAY_ADDRESS")
        try:
            ray.init(address=address, num_cpus=None if address else cpus, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(f"the cluster at {address!r} cannot be reached: {error}.") from error
    try:
        yield ray
    finally:
        if starts:
            ray.shutdown()


@contextlib.contextmanager
def distribute() -> Iterator[None]:
    """Let methods distribute independent parts of their work, for the length of a `with` block.

    Ray must be connected, see `cluster`.
    """
    token = _DISTRIBUTED.set(True)
    try:
        yield
    finally:
        _DISTRIBUTED.reset(token)


def is_distributed() -> bool:
    """Return whether this runs inside `distribute`."""
    return _DISTRIBUTED.get()


def run_parts(
    work: Callable[[Any, Any], Any], shared: Any, parts: Sequence[Any], cpus: int, gpus: int
) -> Iterator[tuple[int, Any]]:
    """Run `work(shared, part)` for every part as a Ray task; yield (part's index, result).

    Results come as tasks finish.

    Args:
        work: a function at the top level of a module, so that workers can import it.
        shared: sent to the workers once.
        parts: one for each task.
        cpus, gpus: that each task takes.
    """
    import ray

    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(work)
    reference = ray.put(shared)
    running = {task.remote(reference, part): index for index, part in enumerate(parts)}
    while running:
        (finished, *_), _ = ray.wait(list(running), num_returns=1)
        yield running.pop(finished), ray.get(finished)
