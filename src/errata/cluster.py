"""A cluster of machines, by Ray: joining one, and spreading parts of a piece of work over it. It
knows no method.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from errata.errors import UsageError

RETRIES = 3
"""Times that a piece of work is started again whose worker died."""

_SPREADING: ContextVar[bool] = ContextVar("spreading", default=False)


@contextlib.contextmanager
def cluster(cpus: int | None = None) -> Iterator[Any]:
    """Ray, where it runs already, on the cluster of $RAY_ADDRESS, else begun on this machine; left
    in the end.

    Args:
        cpus: processors to take, where it is begun here; None takes all.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("the executor 'ray' needs Ray: pip install 'errata[ray]'.") from error
    begun = not ray.is_initialized()
    if begun:
        address = os.environ.get("RAY_ADDRESS")
        try:
            ray.init(address=address, num_cpus=None if address else cpus, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(f"the cluster at {address!r} cannot be reached: {error}.") from error
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()


@contextlib.contextmanager
def spreading() -> Iterator[None]:
    """Within, methods send out what falls into parts that need not know each other; Ray runs."""
    token = _SPREADING.set(True)
    try:
        yield
    finally:
        _SPREADING.reset(token)


def spreads() -> bool:
    """Whether parts are to be sent out, see `spreading`."""
    return _SPREADING.get()


def spread(
    work: Callable[[Any, Any], Any], shared: Any, parts: Sequence[Any], cpus: int, gpus: int
) -> Iterator[tuple[int, Any]]:
    """(which part, work(shared, part)) as they are done; each part a task of Ray's, begun again
    where its worker dies.

    Args:
        work: a function of a module, so that others find it.
        shared: sent once.
        parts: one for each task.
        cpus, gpus: that each task takes.
    """
    import ray

    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(work)
    sent = ray.put(shared)
    running = {task.remote(sent, part): number for number, part in enumerate(parts)}
    while running:
        (ended, *_), _ = ray.wait(list(running), num_returns=1)
        yield running.pop(ended), ray.get(ended)
