"""Show a run as it goes: live lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TextIO

from ..types import Event, Graph, StageResult
from .lines import counts_line, finished_line

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress, TaskID

__all__ = ["LiveReporter", "PlainReporter", "Reporter", "Silent"]

_WIDEST = 40
"""Longer ids move what follows to the right, in their own line alone."""


class Reporter(Protocol):
    """What a run needs of whoever shows it."""

    def __call__(self, event: Event) -> None:
        """Take notice of one event."""

    def finish(self, results: Mapping[str, StageResult], seconds: float) -> None:
        """Say how the run ended; called once, after interruptions too."""


class Silent:
    """Shows nothing."""

    def __call__(self, event: Event) -> None:
        """Ignore the event."""

    def finish(self, results: Mapping[str, StageResult], seconds: float) -> None:
        """Say nothing."""


class PlainReporter:
    """One line as a stage starts and one as it ends; a hit is one line."""

    def __init__(self, graph: Graph, stream: TextIO, *, color: bool, log: bool = False) -> None:
        self._stream = stream
        self._color = color
        self._log = log
        self._width = min(_WIDEST, max((len(id_) for id_ in graph.stages), default=0))

    def __call__(self, event: Event) -> None:
        """Print the event's line, if it has one."""
        if event.kind == "stage-started":
            self._print(f"> {event.stage:<{self._width}}  {event.text}".rstrip())
        elif event.kind == "stage-log" and self._log:
            self._print(f"  {event.stage}: {event.text}")
        elif event.kind == "run-note":
            self._print(event.text)
        elif event.kind == "stage-finished" and event.result is not None:
            self._print(finished_line(event.result, self._width, color=self._color))

    def finish(self, results: Mapping[str, StageResult], seconds: float) -> None:
        """Print the counts, unless an error has ended the run before the first stage."""
        if results:
            self._print(counts_line(results, seconds))

    def _print(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class LiveReporter(PlainReporter):
    """Plain lines for what is finished, and below them one live line per running stage."""

    def __init__(self, graph: Graph, stream: TextIO, *, color: bool, log: bool = False) -> None:
        super().__init__(graph, stream, color=color, log=log)
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        """Print the event's line, or change the live line of its stage."""
        if event.kind == "stage-started":
            self._started(event)
        elif event.kind == "stage-progress" and self._progress is not None:
            task = self._tasks.get(event.stage)
            if task is not None:
                self._progress.update(task, completed=event.fraction, total=1.0, note=event.text or "")
        else:
            if event.kind == "stage-finished" and self._progress is not None:
                task = self._tasks.pop(event.stage, None)
                if task is not None:
                    self._progress.remove_task(task)
            super().__call__(event)

    def finish(self, results: Mapping[str, StageResult], seconds: float) -> None:
        """Take the live lines away and print the counts."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        super().finish(results, seconds)

    def _started(self, event: Event) -> None:
        if self._progress is None:
            self._start_live()
        assert self._progress is not None
        self._tasks[event.stage] = self._progress.add_task(event.stage, total=None, note="")

    def _start_live(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(file=self._stream, no_color=not self._color, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn(f"{{task.description:<{self._width}}}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._live = Live(self._progress, console=console, transient=True, refresh_per_second=8)
        self._live.start()

    def _print(self, line: str) -> None:
        if self._live is None:
            super()._print(line)
            return
        from rich.text import Text

        self._live.console.print(Text.from_ansi(line))
