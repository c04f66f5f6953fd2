"""Measure latencies side by side: interleaved, warmed up, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

from ..model.compare import Model

_WARM_UP = 10


def measure(
    models: Mapping[str, Model], inputs: Mapping[str, Any], rounds: int
) -> dict[str, tuple[float, float]]:
    """Return (median, 95th percentile) in microseconds by name.

    Every round runs each model once, so that what slows the machine slows all of them.
    """
    for _ in range(_WARM_UP):
        for run in models.values():
            run(inputs)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, run in models.items():
            started = time.perf_counter_ns()
            run(inputs)
            times[name].append((time.perf_counter_ns() - started) / 1e3)
    return {
        name: (statistics.median(values), sorted(values)[int(0.95 * (len(values) - 1))])
        for name, values in times.items()
    }
