"""Show how far a transfer has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TextIO

from .lines import duration, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Transfer"]

_SILENT_S = 1.0
_LINE_EVERY_S = 5.0


class _Ended(Exception):
    """The command has ended, and so has what a thread still does for it."""


class Transfer:
    """A transfer of `total` bytes, or of what `shown` makes of a number; called with each number that came.

    Nothing is shown of one that takes less than a second, or with `quiet`. Threads may call it; after the
    `with` block that ends them.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        shown: Callable[[int], str] = size,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total = total
        self._shown = shown
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._come = 0
        self._ended = False
        self._started_s = clock_s()
        self._said_s: float | None = None
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        with self._lock:
            self._ended = True
            if self._bar is not None:
                self._bar[0].stop()
        if self._said_s is not None and failure[0] is None:
            spent = duration(self._clock_s() - self._started_s)
            self._say(f"{self._what}: {self._shown(self._come)} in {spent}")

    def __call__(self, count: int) -> None:
        """Add what has come."""
        with self._lock:
            if self._ended:
                raise _Ended
            self._come += count
            if not self._quiet and self._clock_s() - self._started_s >= _SILENT_S:
                self._show()

    def _show(self) -> None:
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            progress, task = self._bar = self._bar or self._start_bar()
            shown = f"{self._shown(self._come)} of {self._shown(self._total)}"
            progress.update(task, completed=self._come, note=shown)
        elif self._said_s is None or self._clock_s() - self._said_s >= _LINE_EVERY_S:
            self._said_s = self._clock_s()
            self._say(f"{self._what}: {self._shown(self._come)} of {self._shown(self._total)}")

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def _start_bar(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(file=self._stream, no_color=bool(os.environ.get("NO_COLOR")), highlight=False)
        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        progress.start()
        return progress, progress.add_task(self._what, total=max(1, self._total), note="")
