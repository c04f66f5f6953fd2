"""Work in threads beside the main one, which need not wait for the disk then."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

__all__ = ["Aside"]

_T = TypeVar("_T")


class Aside(Generic[_T]):
    """Jobs for at most so many threads, begun in the order in which they came; each ends with `wake`."""

    def __init__(self, wake: Callable[[], None], *, threads: int) -> None:
        self._wake = wake
        self._most = threads
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[Callable[[], _T] | None] = SimpleQueue()
        self._done: deque[tuple[_T] | BaseException] = deque()

    def do(self, job: Callable[[], _T]) -> None:
        """Have a job done."""
        if len(self._threads) < self._most:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
        self._jobs.put(job)

    def take(self) -> list[_T]:
        """Return what has been done since. Raises what a job has raised."""
        taken: list[_T] = []
        while self._done:
            one = self._done.popleft()
            if isinstance(one, BaseException):
                raise one
            taken.extend(one)
        return taken

    def close(self) -> None:
        """Wait until all is done."""
        for _ in self._threads:
            self._jobs.put(None)
        while self._threads:
            self._threads.pop().join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._done.append((job(),))
            except BaseException as error:
                self._done.append(error)
            self._wake()
