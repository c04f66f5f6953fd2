"""What is on its way to a shared cache: sent in the background, and waited for as long as it moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import SimpleQueue

from ..errors import StoreError
from .link import Link
from .remote import RemoteError

__all__ = ["Sending"]

_AT_ONCE = 4
_SAID_EVERY_S = 10.0
_PATIENCE = 3.0
"""In time limits of a request: if no part of an object is taken for so long, the rest isn't waited for."""

Report = Callable[[int], None]
Task = Callable[[Report], bool]


class Sending:
    """The records of one process that are being sent. A task returns whether its record has arrived."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._queue: SimpleQueue[tuple[Task, Future[bool]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._tasks: set[Future[bool]] = set()
        self._bytes = 0
        self._sent = 0
        self._lock = threading.Lock()
        self._given_up = False

    def add(self, task: Task) -> None:
        """Begin a task as soon as a thread is free."""
        future: Future[bool] = Future()
        self._tasks.add(future)
        self._queue.put((task, future))
        if len(self._threads) < _AT_ONCE:
            # They die with the process: who interrupts a run doesn't wait for a remote that stalls.
            self._threads.append(threading.Thread(target=self._work, name="sending", daemon=True))
            self._threads[-1].start()

    def _work(self) -> None:
        while (found := self._queue.get()) is not None:
            task, future = found
            try:
                future.set_result(not self._given_up and task(self._count))
            except BaseException as error:
                future.set_exception(error)

    def _count(self, count: int) -> None:
        if self._given_up:
            raise RemoteError("the run has ended")
        with self._lock:
            self._bytes += count

    def finish(self) -> None:
        """Wait for what is on its way, as long as it moves; say how much is left, if it doesn't.

        Raises RequiredError where the cache is required and fails.
        """
        pace_s = _PATIENCE * self._link.spec.timeout_s
        before, said_s, checked_s = self._bytes, time.monotonic(), time.monotonic()
        while self._tasks:
            done, self._tasks = wait(self._tasks, min(pace_s, 1.0), FIRST_COMPLETED)
            for task in done:
                self._take(task)
            now = time.monotonic()
            if done or self._bytes > before:
                before, checked_s = self._bytes, now
            elif now - checked_s >= pace_s:
                self._give_up()
                return
            if self._tasks and now - said_s >= _SAID_EVERY_S:
                said_s = now
                left = len(self._tasks)
                self._link.note(f"sending to the shared cache: {self._bytes >> 20} MiB, {left} stages left")

    def _take(self, task: Future[bool]) -> None:
        try:
            self._sent += task.result()
        except StoreError as error:
            self._link.note(f"a stage was not sent to the shared cache: {error}")

    def _give_up(self) -> None:
        self._given_up = True
        self._link.note(
            f"the shared cache is too slow: {len(self._tasks)} stages were not sent to it "
            "(`deploy-runner cache push` sends them)"
        )

    def close(self) -> None:
        """Send nothing more: what is under way ends with its request."""
        self._given_up = True
        for _ in self._threads:
            self._queue.put(None)
