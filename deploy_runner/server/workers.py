"""Several processes that answer on one port: started, replaced when they end, told what the first is told.

They are forked once the model is loaded, so that they share its memory, and each has a socket of its own on
the port (SO_REUSEPORT), by which the kernel spreads connections. The sockets are opened here and outlive a
worker: what has connected to one that was killed is answered by its successor.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

from .children import reaped
from .log import Log

__all__ = ["Workers"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_PR_SET_PDEATHSIG = 1
_FORCED = 130
_SOON_S, _WAIT_S = 2.0, 1.0
"""A worker that ends sooner than this is replaced after a wait."""

Work = Callable[[int, socket.socket, Callable[[], None]], int]
"""Serves as worker N on a socket, calls what it is given when it answers, and returns an exit code."""


class Workers:
    """Runs one worker for each listener until a signal ends them."""

    def __init__(self, listeners: Sequence[socket.socket], work: Work, log: Log) -> None:
        self._listeners, self._work, self._log = listeners, work, log
        self._running: dict[int, tuple[int, float]] = {}
        self._due: dict[int, float] = {}
        self._draining = False
        self._code = 0

    def run(self, announce: Callable[[], None]) -> int:
        """Start them, announce when all answer, and return the exit code when all have ended."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pipes = [self._start(number) for number in range(len(self._listeners))]
        if not all(_is_ready(pipe) for pipe in pipes):
            self._end(signal.SIGKILL)
            self._code = 1
        else:
            announce()
        while self._running or self._due:
            wait_s = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else 3600.0
            received = signal.sigtimedwait(_SIGNALS, wait_s)
            if received is not None and received.si_signo == signal.SIGHUP:
                self._tell(signal.SIGHUP)
            elif received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT):
                again = self._draining
                self._code = _FORCED if again else self._code
                self._end(signal.SIGKILL if again else signal.Signals(received.si_signo))
            self._reap()
            self._replace()
        return self._code

    def _end(self, number: signal.Signals) -> None:
        self._draining = True
        self._due.clear()
        for listener in self._listeners:
            listener.close()
        self._tell(number)

    def _tell(self, number: signal.Signals) -> None:
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _reap(self) -> None:
        for pid, status in reaped():
            # As the first process of a container it has others' children, too.
            worker, started_s = self._running.pop(pid, (-1, 0.0))
            if worker < 0 or self._draining:
                continue
            now_s = time.monotonic()
            self._due[worker] = now_s + (_WAIT_S if now_s - started_s < _SOON_S else 0.0)
            self._log("worker ended", worker=worker, code=os.waitstatus_to_exitcode(status))

    def _replace(self) -> None:
        for worker, due_s in list(self._due.items()):
            if due_s <= time.monotonic():
                del self._due[worker]
                os.close(self._start(worker))

    def _start(self, worker: int) -> int:
        """Fork a worker; return the pipe that it writes to when it answers."""
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            # OpenBLAS has threads, which it ends and starts again around a fork; onnxruntime has none.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            os.close(writing)
            self._running[pid] = (worker, time.monotonic())
            return reading
        code = 1
        try:
            os.close(reading)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            for other, listener in enumerate(self._listeners):
                if other != worker:
                    listener.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            code = self._work(worker, self._listeners[worker], lambda: _say_ready(writing))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # What stands to be removed at the exit is the first process's.


def _say_ready(pipe: int) -> None:
    with suppress(BrokenPipeError):
        os.write(pipe, b"1")
    os.close(pipe)


def _is_ready(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b"1"
    finally:
        os.close(pipe)
