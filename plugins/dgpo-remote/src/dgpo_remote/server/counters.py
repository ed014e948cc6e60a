"""Prometheus metrics, served at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Counters"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Counters:
    """Metrics of one service, in a separate registry. Thread-safe."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("dgpo_requests", "Requests by path and status.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "dgpo_request_seconds", "Time from a request to its response.", ["path"], buckets=SECONDS, registry=registry
        )
        self.samples = Counter("dgpo_samples", "Samples sent to the reward.", registry=registry)
        self.missing = Counter("dgpo_missing", "Samples that the reward could not score.", registry=registry)
        self.failures = Counter("dgpo_failed_batches", "Batches on which the reward failed.", registry=registry)
        self.batch = Histogram("dgpo_batch_samples", "Samples per batch.", buckets=SAMPLES, registry=registry)
        self.batch_seconds = Histogram(
            "dgpo_batch_seconds", "Time of the reward per batch.", buckets=SECONDS, registry=registry
        )
        self._refused = Counter(
            "dgpo_refused", "Refused requests and connections, by reason.", ["reason"], registry=registry
        )
        self._queue = Gauge("dgpo_queue_length", "Batches waiting for the reward.", registry=registry)
        self._inside = Gauge("dgpo_requests_under_way", "Requests in progress.", registry=registry)

        self._memory = Gauge("dgpo_memory_bytes", "Memory reserved by requests in progress.", registry=registry)
        self._connections = Gauge("dgpo_connections", "Open connections.", registry=registry)

    def watch(
        self,
        queue: Callable[[], float],
        inside: Callable[[], float],
        memory: Callable[[], float],
        connections: Callable[[], float],
    ) -> None:
        """Set the callbacks of the gauges."""
        self._queue.set_function(queue)
        self._inside.set_function(inside)
        self._memory.set_function(memory)
        self._connections.set_function(connections)

    def refuse(self, reason: str) -> None:
        """Count a refused request or connection. reason: a kind of `ErrorDetail`, or the reason of a connection."""
        self._refused.labels(reason).inc()

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)
