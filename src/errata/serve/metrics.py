"""Counters and times of a server, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from errata.serve.answering import Answering
from errata.serve.service import Service

MEDIA_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """What is counted of one server."""

    def __init__(self, service: Service) -> None:
        registry = self._registry = CollectorRegistry()
        self._answers = Counter(
            "errata_answers", "Answers, by model and by what they came from.",
            ["model", "outcome"], registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "errata_tokens", "Tokens read and written.", ["kind"], registry=registry
        )
        self._seconds = Histogram(
            "errata_request_seconds", "Seconds from a request to its last token.",
            registry=registry,
        )  # fmt: skip
        for name, says, value in (
            ("errata_version", "The model's version.", lambda: service.version),
            ("errata_edits", "Edits in the model.", lambda: len(service.edits)),
            ("errata_settled", "Edits in the weights that answer.", lambda: _settled(service)),
            ("errata_waiting", "Requests that wait.", lambda: service.engine.waiting),
            ("errata_running", "Requests being answered.", lambda: service.engine.running),
        ):
            Gauge(name, says, registry=registry).set_function(value)

    def answered(self, answering: Answering) -> None:
        """Count a request that was answered."""
        for choice in answering.choices:
            outcome = choice.last.outcome
            self._answers.labels(
                answering.request.model, outcome.name if outcome else "unknown"
            ).inc()
        usage = answering.usage
        self._tokens.labels("read").inc(usage.prompt_tokens)
        self._tokens.labels("written").inc(usage.completion_tokens)
        self._seconds.observe(time.monotonic() - answering.begun)

    def text(self) -> bytes:
        """Return all of it in Prometheus's format."""
        return generate_latest(self._registry)


def _settled(service: Service) -> int:
    settled = service.engine.settled
    return len(settled.edit_ids) if settled else 0
