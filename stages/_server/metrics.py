"""The figures at /metrics, in Prometheus's format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_INFERENCE_S = (0.00005, 0.0001, 0.00025, 0.0005, *_SECONDS)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All of a server's figures; each server has its own."""

    def __init__(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "serve_requests", "Requests by route and status", ("route", "status"), registry=registry
        )
        self._latency = Histogram(
            "serve_request_seconds",
            "Time to answer a request",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._samples = Histogram(
            "serve_batch_samples", "Samples run together", buckets=_SAMPLES, registry=registry
        )
        self._inference = Histogram(
            "serve_inference_seconds",
            "Time of one batch in the model",
            buckets=_INFERENCE_S,
            registry=registry,
        )
        Gauge("serve_queue_samples", "Samples that wait", registry=registry).set_function(waiting)
        batches = Gauge("serve_running_batches", "Batches in the model", registry=registry)
        batches.set_function(running)
        self._model = Info("serve_model", "The model that is served", registry=registry)
        self._reloads = Counter("serve_reloads", "Reloads by result", ("result",), registry=registry)
        for result in ("swapped", "refused", "unchanged"):
            self._reloads.labels(result)
        self._answered: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        known = self._answered.get((route, status))
        if known is None:
            known = (self._requests.labels(route, str(status)), self._latency.labels(route))
            self._answered[route, status] = known
        known[0].inc()
        known[1].observe(seconds)

    def batch(self, samples: int, seconds: float) -> None:
        """Count a batch."""
        self._samples.observe(samples)
        self._inference.observe(seconds)

    def model(self, name: str, digest: str, format_: str) -> None:
        """Say which model is served."""
        self._model.info({"name": name, "digest": digest, "format": format_})

    def reload(self, result: str) -> None:
        """Count a reload: swapped, refused or unchanged."""
        self._reloads.labels(result).inc()

    def text(self) -> bytes:
        """Return all figures."""
        return generate_latest(self._registry)
