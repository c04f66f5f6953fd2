"""The process that runs actions on a node, as Ray's worker process sees it: started, asked, stopped."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

__all__ = ["Relay"]


class Relay:
    """Passes parcels to a process that is kept from one to the next, and passes its lines on."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._stop = False
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "deploy_runner.engine.execute.node", str(theirs.fileno()), node],
                pass_fds=[theirs.fileno()],
                env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._channel = Connection(ours.detach())
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def works(self) -> bool:
        """Say whether the process has not ended."""
        return self._process.poll() is None

    def run(self, parcel: bytes, send: Callable[[list[str]], None]) -> bytes:
        """Run a parcel; SIGINT, by which Ray cancels a task, stops it.

        Raises RuntimeError if the process ends.
        """
        self._stop = False
        given = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
        before = signal.signal(signal.SIGINT, self._interrupt)
        fd = signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        try:
            self._channel.send(("run", parcel, given))
            return self._result(send)
        except (EOFError, OSError):
            raise RuntimeError(
                f"the process that runs stages on the node {self.node} has ended (out of memory, "
                "or deploy-runner is not installed there)"
            ) from None
        finally:
            signal.set_wakeup_fd(fd)
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, number: int, frame: object) -> None:
        self._stop = True

    def _result(self, send: Callable[[list[str]], None]) -> bytes:
        told = False
        while True:
            ready, _, _ = select.select([self._channel.fileno(), self._wake_r], [], [])
            if self._wake_r in ready:
                os.read(self._wake_r, 4096)
            if self._stop and not told:
                told = True
                self._channel.send(("stop",))
            if self._channel.fileno() in ready:
                kind, value = self._channel.recv()
                if kind == "ended":
                    assert isinstance(value, bytes)
                    return value
                send(value)
