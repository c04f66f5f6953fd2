"""Where a batch runs: in the event loop itself, or in a thread beside it.

In the loop a batch costs its own time, in which nothing else is done. A thread costs a hand-over there and
back, and the wait for the interpreter's lock. So what takes little more CPU than a hand-over runs in the
loop. CPU time says so whatever else the machine does; it depends on how much a batch holds, and is measured
of every batch, since values and shapes that come may cost something else than those that were tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

__all__ = ["LOOP", "PLACES", "THREAD", "Placement", "handover_s"]

LOOP, THREAD = "loop", "thread"
PLACES = ("auto", LOOP, THREAD)

_MOST_HANDOVERS = 128
"""What takes the CPU of so many bare hand-overs still runs in the loop: 2 to 4 ms, less than a thread may
wait for the interpreter's lock (5 ms). A hand-over under load costs several times the bare one."""
_STAY, _COME = 1.25, 0.8
"""Shares of that limit up to which a size stays in the loop, and below which it comes back."""
_RISE, _FALL = 1 / 4, 1 / 32
"""Weights of a measurement that is above what was expected, and below: one long batch is enough to move."""
_EVERY, _FIRST = 8, 16
"""So many batches are measured at first, then one of so many: the clock of CPU time costs 2 µs and more."""
_SAID = 4
"""A size that moves more often than this is not logged any more."""


@cache
def handover_s() -> float:
    """Return the CPU seconds of handing work to a thread and waiting for it."""
    shortest = 1.0
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        for _ in range(4):
            started_s = time.process_time()
            for _ in range(25):
                pool.submit(int).result()
            shortest = min(shortest, (time.process_time() - started_s) / 25)
    return shortest


class Placement:
    """Decides for each batch by its size, the number of values in its inputs.

    `measured` has the CPU seconds of some sizes; `tell` is told of a size that moves.
    """

    def __init__(self, choice: str, measured: Mapping[int, float], tell: Callable[..., Any]) -> None:
        self._forced = None if choice == "auto" else choice == LOOP
        self._limit_s = _MOST_HANDOVERS * handover_s()
        self._tell = tell
        self._expected_s = {size.bit_length(): seconds for size, seconds in measured.items()}
        self._in_loop: dict[int, bool] = {}
        self._moves: dict[int, int] = {}
        self._batches, self._measured_until = 0, _FIRST

    def measures(self) -> bool:
        """Say whether the next batch's CPU time is to be measured."""
        self._batches += 1
        return self._batches <= self._measured_until or self._batches % _EVERY == 0

    def in_loop(self, size: int) -> bool:
        """Say whether a batch of so many values runs in the event loop."""
        if self._forced is not None:
            return self._forced
        bits = size.bit_length()
        found = self._in_loop.get(bits)
        if found is None:
            found = self._in_loop[bits] = self._expected(bits) <= self._limit_s
        return found

    def observe(self, size: int, seconds: float, cpu_s: float | None) -> None:
        """Take note of what a batch has taken, of CPU too where that was measured."""
        if self._forced is not None:
            return
        if cpu_s is None:
            if seconds > self._limit_s and self.in_loop(size):
                self._measured_until = self._batches + _FIRST
            return
        bits = size.bit_length()
        before_s, before = self._expected(bits), self.in_loop(size)
        weight = _RISE if cpu_s > before_s else _FALL
        now_s = self._expected_s[bits] = before_s + weight * (cpu_s - before_s)
        after = now_s <= self._limit_s * (_STAY if before else _COME)
        if after != before:
            self._in_loop[bits] = after
            self._moves[bits] = self._moves.get(bits, 0) + 1
            if self._moves[bits] <= _SAID:
                self._tell("placement", values=size, runs_in=LOOP if after else THREAD,
                           cpu_ms=round(now_s * 1e3, 3), limit_ms=round(self._limit_s * 1e3, 3))  # fmt: skip

    def _expected(self, bits: int) -> float:
        """Return what a size is expected to take: as was measured, else in proportion to the nearest size."""
        found = self._expected_s.get(bits)
        if found is None:
            if not self._expected_s:
                return 0.0
            near = min(self._expected_s, key=lambda known: abs(known - bits))
            found = self._expected_s[near] * (2.0 ** (bits - near) if bits > near else 1.0)
        return found

    def most_samples(self, values: int, max_batch: int) -> int:
        """Return how many samples of so many values a batch may have to run in the loop; 0 for none."""
        fit = [1 << i for i in range(max_batch.bit_length()) if self.in_loop(values << i)]
        return max_batch if self.in_loop(values * max_batch) else max(fit, default=0)
