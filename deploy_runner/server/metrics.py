"""The figures at /metrics, in Prometheus's format.

What is counted for each request is kept in plain numbers of the event loop's own, and only made into
prometheus_client's families when it is asked for: its own counters, made for many threads, take several
microseconds of a request that takes sixty.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

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

from .placement import LOOP, THREAD

__all__ = ["CONTENT_TYPE", "Metrics", "State"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_INFERENCE_S = (0.00005, 0.0001, 0.00025, 0.0005, *_SECONDS)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


_REQUESTS, _LATENCY, _SAMPLES_RUN, _INFERENCE = "requests", "latency", "samples", "inference"
_PLACES, _RELOADS, _QUEUE, _RUNNING = "places", "reloads", "queue", "running"
State = dict[str, Any]
"""A worker's figures as JSON holds them: a histogram is a list of its counts, with its sum behind them."""


class _Histogram:
    """Counts values by the first bound that isn't below them."""

    __slots__ = ("_bounds", "figures")

    def __init__(self, bounds: Sequence[float], figures: list[float] | None = None) -> None:
        self._bounds, self.figures = bounds, figures or [0] * (len(bounds) + 2)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.figures[bisect_left(self._bounds, value)] += 1
        self.figures[-1] += value


def _add_to(
    family: HistogramMetricFamily, labels: Sequence[str], bounds: Sequence[float], figures: Sequence[float]
) -> None:
    """Add what was counted to a family."""
    total, buckets = 0.0, []
    for bound, count in zip((*bounds, float("inf")), figures, strict=False):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
    family.add_metric(labels, buckets, figures[-1])


def _joined(one: Any, other: Any, of: Callable[[Any, Any], Any] = add) -> Any:
    """Return the figures of two workers as those of one."""
    if isinstance(one, dict):
        return {
            name: _joined(one[name], other[name], max if name == _RELOADS else of)
            if name in one and name in other
            else one.get(name, other.get(name))
            for name in {**one, **other}
        }
    return [of(a, b) for a, b in zip(one, other, strict=True)] if isinstance(one, list) else of(one, other)


class Metrics(Collector):
    """All of a server's figures, or of one of its workers; `others` has what the others have shown.

    A reload is done by every worker, and counts once.
    """

    def __init__(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        self._waiting, self._running = waiting, running
        self.others: Callable[[], Sequence[State]] = tuple
        self._requests: dict[tuple[str, int], int] = {}
        self._latency: dict[str, _Histogram] = {}
        self._samples, self._inference = _Histogram(_SAMPLES), _Histogram(_INFERENCE_S)
        self._places = dict.fromkeys((LOOP, THREAD), 0)
        self._reloads = dict.fromkeys(("swapped", "refused", "unchanged"), 0)
        self._model: dict[str, str] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def state(self) -> State:
        """Return this worker's figures."""
        return {
            _REQUESTS: {f"{status} {route}": n for (route, status), n in list(self._requests.items())},
            _LATENCY: {route: histogram.figures for route, histogram in list(self._latency.items())},
            _SAMPLES_RUN: self._samples.figures, _INFERENCE: self._inference.figures,
            _PLACES: self._places, _RELOADS: self._reloads,
            _QUEUE: self._waiting(), _RUNNING: int(self._running()),
        }  # fmt: skip

    def resume(self, state: State) -> None:
        """Continue the figures of a worker that this one replaces."""
        for key, count in state[_REQUESTS].items():
            status, _, route = key.partition(" ")
            self._requests[route, int(status)] = count
        self._latency = {route: _Histogram(_SECONDS, figures) for route, figures in state[_LATENCY].items()}
        self._samples = _Histogram(_SAMPLES, state[_SAMPLES_RUN])
        self._inference = _Histogram(_INFERENCE_S, state[_INFERENCE])
        self._places, self._reloads = state[_PLACES], state[_RELOADS]

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        key = (route, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        histogram = self._latency.get(route)
        if histogram is None:
            histogram = self._latency[route] = _Histogram(_SECONDS)
        histogram.observe(seconds)

    def batch(self, samples: int, seconds: float, place: str) -> None:
        """Count a batch."""
        self._places[place] += 1
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
        others = self.others()
        state = reduce(_joined, others, self.state())
        requests = CounterMetricFamily(
            "serve_requests", "Requests by route and status", labels=("route", "status")
        )
        for key, count in state[_REQUESTS].items():
            status, _, route = key.partition(" ")
            requests.add_metric((route, status), count)
        yield requests
        latency = HistogramMetricFamily(
            "serve_request_seconds", "Time to respond to a request", labels=("route",)
        )
        for route, figures in state[_LATENCY].items():
            _add_to(latency, (route,), _SECONDS, figures)
        yield latency
        samples = HistogramMetricFamily("serve_batch_samples", "Samples run together")
        _add_to(samples, (), _SAMPLES, state[_SAMPLES_RUN])
        yield samples
        inference = HistogramMetricFamily("serve_inference_seconds", "Time of one batch in the model")
        _add_to(inference, (), _INFERENCE_S, state[_INFERENCE])
        yield inference
        places = CounterMetricFamily("serve_batches", "Batches by where they ran", labels=("place",))
        for place, count in state[_PLACES].items():
            places.add_metric((place,), count)
        yield places
        yield GaugeMetricFamily("serve_queue_samples", "Samples waiting in the queue", state[_QUEUE])
        yield GaugeMetricFamily("serve_running_batches", "Batches in the model", state[_RUNNING])
        yield GaugeMetricFamily("serve_workers", "Processes that answer requests", 1 + len(others))
        yield InfoMetricFamily("serve_model", "The model being served", self._model)
        reloads = CounterMetricFamily("serve_reloads", "Reloads by result", labels=("result",))
        for result, count in state[_RELOADS].items():
            reloads.add_metric((result,), count)
        yield reloads

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the families are known only when a model is served."""
        return iter(())

    def text(self) -> bytes:
        """Return all figures."""
        return generate_latest(self._registry)
