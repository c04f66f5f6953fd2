"""SIGINT and SIGTERM during a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

__all__ = ["Interrupts"]


class Interrupts:
    """Catches both signals in the main thread: they raise KeyboardInterrupt, or are answered.

    A run whose record is to be written must not be left by an exception between any two steps.
    """

    def __init__(self) -> None:
        self.come = False
        self._answer: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._take) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        self.come = True
        if self._answer is None:
            self.note()
            raise KeyboardInterrupt
        self._answer()

    def answer(self, answer: Callable[[], None]) -> None:
        """Have `answer` called at each signal from now on; it must not raise."""
        self._answer = answer

    def note(self) -> None:
        """Have signals only noted from now on, in `come`."""
        self._answer = _do_nothing

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Have the first signal raise KeyboardInterrupt meanwhile, and those afterwards only noted."""
        self._answer = None
        try:
            yield
        finally:
            self.note()


def _do_nothing() -> None:
    return None
