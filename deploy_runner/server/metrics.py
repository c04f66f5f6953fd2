"""The figures at /metrics, in Prometheus's format.

What is counted for each request is kept in plain numbers of the event loop's own, and only made into
prometheus_client's families when it is asked for: its own counters, made for many threads, take several
microseconds of a request that takes sixty.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_INFERENCE_S = (0.00005, 0.0001, 0.00025, 0.0005, *_SECONDS)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Histogram:
    """Counts values by the first bound that isn't below them."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add what was counted to a family."""
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
        family.add_metric(labels, buckets, self._sum)


class Metrics(Collector):
    """All of a server's figures; each server has its own."""

    def __init__(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        self._waiting, self._running = waiting, running
        self._requests: dict[tuple[str, int], int] = {}
        self._latency: dict[str, _Histogram] = {}
        self._samples, self._inference = _Histogram(_SAMPLES), _Histogram(_INFERENCE_S)
        self._reloads = dict.fromkeys(("swapped", "refused", "unchanged"), 0)
        self._model: dict[str, str] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        key = (route, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        histogram = self._latency.get(route)
        if histogram is None:
            histogram = self._latency[route] = _Histogram(_SECONDS)
        histogram.observe(seconds)

    def batch(self, samples: int, seconds: float) -> None:
        """Count a batch."""
        self._samples.observe(samples)
        self._inference.observe(seconds)

    def model(self, name: str, digest: str, format_: str) -> None:
        """Say which model is served."""
        self._model = {"name": name, "digest": digest, "format": format_}

    def reload(self, result: str) -> None:
        """Count a reload: swapped, refused or unchanged."""
        self._reloads[result] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        requests = CounterMetricFamily(
            "serve_requests", "Requests by route and status", labels=("route", "status")
        )
        for (route, status), count in list(self._requests.items()):
            requests.add_metric((route, str(status)), count)
        yield requests
        latency = HistogramMetricFamily(
            "serve_request_seconds", "Time to respond to a request", labels=("route",)
        )
        for route, histogram in list(self._latency.items()):
            histogram.add_to(latency, (route,))
        yield latency
        samples = HistogramMetricFamily("serve_batch_samples", "Samples run together")
        self._samples.add_to(samples, ())
        yield samples
        inference = HistogramMetricFamily("serve_inference_seconds", "Time of one batch in the model")
        self._inference.add_to(inference, ())
        yield inference
        yield GaugeMetricFamily("serve_queue_samples", "Samples waiting in the queue", self._waiting())
        yield GaugeMetricFamily("serve_running_batches", "Batches in the model", self._running())
        yield InfoMetricFamily("serve_model", "The model being served", self._model)
        reloads = CounterMetricFamily("serve_reloads", "Reloads by result", labels=("result",))
        for result, count in self._reloads.items():
            reloads.add_metric((result,), count)
        yield reloads

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the families are known only when a model is served."""
        return iter(())

    def text(self) -> bytes:
        """Return all figures."""
        return generate_latest(self._registry)
