"""Join the requests that wait into batches, bounded in number and in time.

Nothing waits while the model is idle: what arrived in one turn of the event loop is run together, and
what arrives while a batch runs is the next batch. Only where requests have been coming together does a
batch that isn't full wait for `max_delay_s`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from .placement import LOOP, THREAD, Placement
from .ports import Arrays, joined, part
from .problems import Overdue, Problem, QueueFull, Refused, TimedOut
from .programs import Program

__all__ = ["Batcher", "Entry", "Limits", "Observer", "Tell"]

_SWEEP_S = 0.05


class Limits:
    """How many samples run together and may wait, and for how long (seconds)."""

    __slots__ = ("max_batch", "max_delay_s", "max_queue", "timeout_s")

    def __init__(self, *, max_batch: int, max_delay_s: float, max_queue: int, timeout_s: float) -> None:
        self.max_batch, self.max_delay_s = max_batch, max_delay_s
        self.max_queue, self.timeout_s = max_queue, timeout_s

    def of(self, max_batch: int) -> Limits:
        """Return the limits with another largest batch."""
        return Limits(max_batch=max_batch, max_delay_s=self.max_delay_s, max_queue=self.max_queue,
                      timeout_s=self.timeout_s)  # fmt: skip


class Observer(Protocol):
    """Is told what the batcher does."""

    def batch(self, samples: int, seconds: float, place: str) -> None:
        """Take note of a batch that was run in the event loop, or in a thread."""
        ...


Tell = Callable[[Arrays | BaseException], object]


class Entry:
    """A request that waits. `watch` is called once, with it, when it has waited for long.

    It must not hold the entry: what refers to itself is freed by the collector of garbage alone.
    What is told the answer may, since the entry lets go of it then.
    """

    __slots__ = ("arrays", "deadline", "key", "queued", "queued_at", "rows", "tell", "watch")

    def __init__(
        self, arrays: Arrays, rows: int, key: Hashable, tell: Tell, now: float, timeout_s: float
    ) -> None:
        self.arrays, self.rows, self.key = arrays, rows, key
        self.queued_at, self.deadline = now, now + timeout_s
        self.queued = True
        self.tell: Tell | None = tell
        self.watch: Callable[[Entry], None] | None = None

    def answer(self, answer: Arrays | BaseException) -> None:
        """Tell the answer to whoever waits for it, once."""
        tell, self.tell = self.tell, None
        if tell is not None:
            tell(answer)


class Batcher:
    """Runs requests through a model; lives in one event loop. `placement` says where a batch runs."""

    def __init__(self, program: Program, limits: Limits, observer: Observer, placement: Placement) -> None:
        self._run, self._limits, self._observer = program.run, limits, observer
        self._inputs, self._outputs = program.inputs, program.outputs
        self._placement = placement
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._queues: dict[Hashable, deque[Entry]] = {}
        self._pending: deque[Entry] = deque()
        self._planned: asyncio.Handle | None = None
        self._sweeping = False
        self._busy = False
        self._last_entries = 0
        self.waiting = 0
        """Samples that wait."""

    def submit(self, arrays: Arrays, rows: int, key: Hashable, tell: Tell) -> Entry:
        """Queue a request, whose answer is told in a later turn of the event loop. Raises QueueFull."""
        size = rows or 1
        if self.waiting + size > self._limits.max_queue:
            said = f"{self.waiting} samples are waiting, the limit is {self._limits.max_queue}"
            raise QueueFull(Problem(("server",), said))
        entry = Entry(arrays, size, key, tell, time.monotonic(), self._limits.timeout_s)
        self.waiting += size
        self._queues.setdefault(key, deque()).append(entry)
        self._pending.append(entry)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)
        if not self._busy:
            self._plan()
        return entry

    def drop(self, entry: Entry, error: BaseException | None = None) -> None:
        """Take an entry out; whoever waits for it is told the error, or nothing more."""
        if entry.queued:
            entry.queued = False
            self.waiting -= entry.rows
        if error is None:
            entry.tell = None
        else:
            entry.answer(error)

    @property
    def running(self) -> bool:
        """Say whether a batch is in the model."""
        return self._busy

    async def drained(self) -> None:
        """Wait until nothing waits or runs, and let the thread go."""
        while self._busy or any(entry.tell is not None for entry in self._pending):
            await asyncio.sleep(_SWEEP_S)
        self._threads.shutdown(wait=False)

    def _plan(self) -> None:
        full = self.waiting >= self._limits.max_batch
        delayed = isinstance(self._planned, asyncio.TimerHandle)
        if self._planned is not None and not (delayed and full):
            return
        if self._limits.max_delay_s and self._last_entries > 1 and not full:
            self._planned = self._loop.call_later(self._limits.max_delay_s, self._next)
            return
        if self._planned is not None:
            self._planned.cancel()
        self._planned = self._loop.call_soon(self._next)

    def _next(self) -> None:
        self._planned = None
        if self._busy:
            return
        entries = self._take()
        if not entries:
            return
        self._last_entries = len(entries)
        size = _size(entries)
        if self._placement.in_loop(size):
            self._finish(entries, size, LOOP, *self._answers(entries))
            return
        self._busy = True
        done = self._loop.run_in_executor(self._threads, self._answers, entries)
        done.add_done_callback(lambda future: self._finish(entries, size, THREAD, *future.result()))

    def _take(self) -> list[Entry]:
        """Return the oldest entry that waits, with those that can be run together with it."""
        entries: list[Entry] = []
        while self._queues and not entries:
            key = min(self._queues, key=lambda k: self._queues[k][0].queued_at)
            queue, rows = self._queues[key], 0
            while queue and (not queue[0].queued or not entries or self._joins(rows, queue[0])):
                entry = queue.popleft()
                if entry.queued:
                    entry.queued = False
                    self.waiting -= entry.rows
                    rows += entry.rows
                    entries.append(entry)
            if not queue:
                del self._queues[key]
        return entries

    def _joins(self, rows: int, entry: Entry) -> bool:
        return entry.key is not None and rows + entry.rows <= self._limits.max_batch

    def _answers(self, entries: Sequence[Entry]) -> tuple[list[Arrays | BaseException], float, float | None]:
        """Run a batch; return what each entry is answered, and its seconds: all, and of CPU if measured.

        Where a batch fails its entries are run one by one: one's values must not fail another.
        """
        cpu_s = time.thread_time() if self._placement.measures() else None
        started_s = time.perf_counter()
        answers: list[Arrays | BaseException]
        try:
            answers = list(self._together(entries))
        except Exception as error:
            answers = [error] if len(entries) == 1 else [self._alone(entry) for entry in entries]
        seconds = time.perf_counter() - started_s
        return answers, seconds, None if cpu_s is None else time.thread_time() - cpu_s

    def _alone(self, entry: Entry) -> Arrays | BaseException:
        try:
            return self._run(entry.arrays)
        except Exception as error:
            return error

    def _together(self, entries: Sequence[Entry]) -> Sequence[Arrays]:
        if len(entries) == 1:
            return [self._run(entries[0].arrays)]
        outputs = self._run(joined([entry.arrays for entry in entries], self._inputs))
        parts, start = [], 0
        for entry in entries:
            stop = start + entry.rows
            parts.append(part(outputs, self._outputs, start, stop))
            start = stop
        return parts

    def _finish(
        self,
        entries: Sequence[Entry],
        size: int,
        place: str,
        answers: Sequence[Any],
        seconds: float,
        cpu_s: float | None,
    ) -> None:
        self._busy = False
        self._observer.batch(sum(entry.rows for entry in entries), seconds, place)
        self._placement.observe(size, seconds, cpu_s)
        for entry, answer in zip(entries, answers, strict=True):
            entry.answer(answer)
        if self._queues:
            self._plan()

    def _sweep(self) -> None:
        """Forget what is answered, end what is overdue, and watch what has been waiting."""
        now = time.monotonic()
        self._pending = deque(entry for entry in self._pending if entry.tell is not None)
        for entry in self._pending:
            if entry.deadline <= now:
                self.drop(entry, _overdue(entry, self._limits.timeout_s))
            elif entry.watch is not None:
                entry.watch(entry)
                entry.watch = None
        self._sweeping = bool(self._pending)
        if self._sweeping:
            self._loop.call_later(_SWEEP_S, self._sweep)


def _size(entries: Sequence[Entry]) -> int:
    """Return how many values a batch's inputs have; what is run together has samples of one size."""
    first = entries[0]
    values = sum(array.size for array in first.arrays.values())
    return values if len(entries) == 1 else values * sum(entry.rows for entry in entries) // first.rows


def _overdue(entry: Entry, timeout_s: float) -> Refused:
    if entry.queued:
        return Overdue(Problem(("server",), f"the request waited for {timeout_s:g} s and was not started"))
    return TimedOut(
        Problem(("server",), f"the model took longer than the request timeout of {timeout_s:g} s")
    )
