"""What is on its way to a shared cache: sent in the background, and waited for as long as it moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import SimpleQueue

from ..errors import StoreError, counted
from .link import Link, RequiredError
from .remote import RemoteError, Report

__all__ = ["Sending"]

_AT_ONCE = 4
_SAID_EVERY_S = 10.0
_WAITED_S = 0.5
_PATIENCE_OF_TIMEOUT = 4.0
"""A request ends after three time limits at most: this is for what never ends, and never moves."""

Task = Callable[[Report], bool]


class _GivenUp(StoreError):
    """Ends a task whose run has ended."""


class Sending:
    """The records of one process that are being sent. A task returns whether its record has arrived.

    A task moves when it reports bytes, and when it reports 0 for an object that already exists.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._patience_s = link.spec.timeout_s * _PATIENCE_OF_TIMEOUT
        self._queue: SimpleQueue[tuple[Task, Future[bool]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._tasks: set[Future[bool]] = set()
        self._bytes = 0
        self._moved_s = 0.0
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
            raise _GivenUp("the run has ended")
        with self._lock:
            self._bytes += count
            self._moved_s = time.monotonic()

    def finish(self) -> None:
        """Wait for what is on its way, as long as it moves; say how much is left, if it doesn't.

        Raises RequiredError where the cache is required and fails.
        """
        started_s = said_s = time.monotonic()
        while self._tasks:
            done, self._tasks = wait(self._tasks, _WAITED_S, FIRST_COMPLETED)
            for task in done:
                self._take(task)
            now = time.monotonic()
            if done:
                self._moved_s = now
            elif now - max(self._moved_s, started_s) >= self._patience_s:
                self._give_up()
                return
            if self._tasks and now - said_s >= _SAID_EVERY_S:
                said_s = now
                left = len(self._tasks)
                self._link.note(
                    f"sending to the shared cache: {self._bytes >> 20} MiB, {counted(left, 'stage')} left"
                )

    def _take(self, task: Future[bool]) -> None:
        try:
            task.result()
        except StoreError as error:
            self._link.note(f"a stage was not sent to the shared cache: {error}")

    def _give_up(self) -> None:
        self._given_up = True
        text, fix = "the shared cache is too slow", "`deploy-runner cache push` sends the rest"
        left = f"{counted(len(self._tasks), 'stage')} not sent to it"
        if self._link.spec.required:
            raise RequiredError(RemoteError(f"{text}: {left}", fix=fix))
        self._link.note(f"{text}: {left} ({fix})")

    def close(self) -> None:
        """Send nothing more: what is under way ends with its request."""
        self._given_up = True
        for _ in self._threads:
            self._queue.put(None)
