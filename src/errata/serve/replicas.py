"""Replicas: several servers of one ledger behind one address, on one machine or more, by Ray Serve.

Each replica has a model of its own and follows the ledger, as servers do that share one.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from errata.cluster import cluster
from errata.errors import UsageError
from errata.serve.answering import MOST_WAITING

NAME = "errata"
"""Of the application in Ray Serve."""


def serve_replicas(
    build: Callable[[], FastAPI],
    host: str,
    port: int,
    count: int,
    on_gpu: bool,
    listening: Callable[[str], None],
) -> None:
    """Serve until a signal ends it.

    Args:
        build: makes a server, on the machine that it is to run on.
        host, port: where Ray's proxy listens.
        count: replicas; each takes a processor, or a GPU.
        on_gpu: whether they take a GPU each.
        listening: called with the address once all replicas answer.

    Raises:
        UsageError: Ray is not installed, its cluster is too small or cannot be reached, or no
            replica can be made.
    """
    with cluster() as ray:
        try:
            from ray import serve
        except ImportError as error:
            raise UsageError("--executor ray needs: pip install 'errata[ray]'.") from error
        kind = "GPU" if on_gpu else "CPU"
        there = int(ray.cluster_resources().get(kind, 0))
        if there < count:
            raise UsageError(
                f"{count} replicas need a {kind} each, and the cluster has {there}; "
                "give --replicas."
            )
        serve.start(http_options={"host": host, "port": port}, logging_config=_QUIET)
        try:
            needs = {"num_cpus": 0 if on_gpu else 1, "num_gpus": 1 if on_gpu else 0}
            deployment = serve.deployment(
                serve.ingress(_as_function(build))(),
                name="server",
                num_replicas=count,
                ray_actor_options=needs,
                max_ongoing_requests=4 * MOST_WAITING,  # the server itself refuses what is too much
                max_constructor_retry_count=1,
                logging_config=_QUIET,
            )
            ended = _signals()
            try:
                serve.run(deployment.bind(), name=NAME, logging_config=_QUIET)
            except RuntimeError as error:
                raise UsageError(f"no replica could be made: {_reason(error, serve)}") from error
            shown = f"[{host}]" if ":" in host else host
            listening(f"http://{shown}:{port}")
            ended.wait()
        finally:
            serve.shutdown()


_QUIET = {"log_level": "WARNING", "enable_access_log": False}


def _as_function(build: Callable[[], FastAPI]) -> Callable[[], FastAPI]:
    """Return what Ray calls on the replica's machine; it takes no other kind of callable."""

    def built() -> FastAPI:
        return build()

    return built


def _signals() -> threading.Event:
    """Return what is set when the process is asked to end."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended


def _reason(error: RuntimeError, serve: Any) -> str:
    """Return the last line of what a replica said when it failed."""
    told: list[str] = [
        line
        for application in serve.status().applications.values()
        for deployment in application.deployments.values()
        for line in deployment.message.splitlines()
        if line.strip()
    ]
    return (told or [str(error)])[-1].strip()
