"""What Prometheus reads: how long requests take, how full batches and the queue are, what was refused and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Seconds; the steps are narrow where a small network answers.
LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The service's own registry: two services in one process do not count together.

    Args:
        model: its name, a label of every figure.
        max_batch_size: the largest bucket of batch sizes.

    Raises:
        ImportError: prometheus-client is missing.
    """

    def __init__(self, model: str, max_batch_size: int) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise ImportError("prometheus-client is missing: pip install 'deploykit[serving]'") from error
        self._generate = prometheus.generate_latest
        self.content_type: str = prometheus.CONTENT_TYPE_LATEST
        self.registry = prometheus.CollectorRegistry()
        sizes = [2**power for power in range(max_batch_size.bit_length()) if 2**power < max_batch_size]

        def figure(kind: Any, name: str, words: str, *labels: str, **options: Any) -> Any:
            return kind(name, words, ["model", *labels], registry=self.registry, namespace="deploykit", **options)

        counter, histogram, gauge = prometheus.Counter, prometheus.Histogram, prometheus.Gauge
        requests = figure(counter, "requests", "Requests answered, by HTTP status.", "status")
        refusals = figure(counter, "refusals", "Requests turned away with 503.", "why")
        latency = figure(
            histogram,
            "request_seconds",
            "From the headers to an answer with status 200.",
            buckets=LATENCY_BUCKETS_S,
        )
        batches = figure(histogram, "batch_images", "Images computed together.", buckets=[*sizes, max_batch_size])
        compute = figure(counter, "compute_seconds", "Spent in the predictor.")
        queue = figure(gauge, "queue_images", "Images that wait.")
        self._of_status = lambda status: requests.labels(model, status)
        self._requests = {status: self._of_status(status) for status in (200, 503)}  # looking labels up takes a while
        self._refusals = {why: refusals.labels(model, why) for why in ("full", "deadline", "not ready")}
        self._latency, self._batches = latency.labels(model), batches.labels(model)
        self._compute, self._queue = compute.labels(model), queue.labels(model)

    def answered(self, status: int, seconds: float) -> None:
        """Count a request."""
        (self._requests.get(status) or self._of_status(status)).inc()
        if status == 200:  # noqa: PLR2004 - OK
            self._latency.observe(seconds)

    def refused(self, why: str) -> None:
        """Count a request that was turned away: "full", "deadline" or "not ready"."""
        self._refusals[why].inc()

    def computed(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self._batches.observe(images)
        self._compute.inc(seconds)

    def watch_queue(self, queued: Callable[[], int]) -> None:
        """Read the length of the queue whenever somebody asks."""
        self._queue.set_function(queued)

    def text(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return self._generate(self.registry)
