"""What is on its way to a shared cache: sent in the background, and waited for as long as it moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ..errors import StoreError
from .link import Link
from .remote import RemoteError

__all__ = ["Sending"]

_AT_ONCE = 4
_SAID_EVERY_S = 10.0
_SLOWEST_BYTES_PER_S = 64 << 10
"""What moves more slowly is not waited for at the end of a run."""

Report = Callable[[int], None]


class Sending:
    """The records of one process that are being sent. A task returns whether its record has arrived."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._pool = ThreadPoolExecutor(_AT_ONCE, "sending")
        self._tasks: set[Future[bool]] = set()
        self._bytes = 0
        self._sent = 0
        self._lock = threading.Lock()
        self._given_up = False

    def add(self, task: Callable[[Report], bool]) -> None:
        """Begin a task as soon as a thread is free."""
        self._tasks.add(self._pool.submit(task, self._count))

    def _count(self, count: int) -> None:
        if self._given_up:
            raise RemoteError("the run has ended")
        with self._lock:
            self._bytes += count

    def finish(self) -> None:
        """Wait for what is on its way, as long as it moves; say how much is left, if it doesn't.

        Raises RequiredError where the cache is required and fails.
        """
        pace_s = max(self._link.spec.timeout_s, 1.0)
        before, said_s, checked_s = self._bytes, time.monotonic(), time.monotonic()
        while self._tasks:
            done, self._tasks = wait(self._tasks, pace_s / 10, FIRST_COMPLETED)
            for task in done:
                self._take(task)
            now = time.monotonic()
            if done:
                before, checked_s = self._bytes, now
            elif now - checked_s >= pace_s:
                if self._bytes - before < _SLOWEST_BYTES_PER_S * pace_s:
                    self._give_up()
                    return
                before, checked_s = self._bytes, now
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
        """End what has not been sent: what is under way continues to the end of a request at most."""
        self._given_up = True
        self._pool.shutdown(cancel_futures=True)
