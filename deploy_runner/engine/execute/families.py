"""Let Python's multiprocessing work in the sandbox, where its sockets have no short place, or are refused.

It hands descriptors (a DataLoader's tensors) from process to process through a UNIX socket in the folder for
temporary files. That folder's path is longer here than such a socket's may be (108 bytes, unix(7)).
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from contextlib import suppress
from multiprocessing import context, process, reduction
from typing import Any, NamedTuple

__all__ = ["hand_over_without_sockets", "shorten"]

_MOST_BYTES = 4096


def shorten(folder: str) -> None:
    """Have this process and its children keep their sockets in a folder of a short path."""
    process.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]


def hand_over_without_sockets() -> None:
    """Have this process and its children hand over descriptors by /proc, for files and pipes."""
    sent = _Outbox()
    usual = reduction.DupFd

    def hand_over(fd: int) -> Any:
        nonlocal sent
        if context.get_spawning_popen() is not None:
            return usual(fd)  # It goes by inheritance.
        if sent.owner != os.getpid():
            sent = _Outbox()
        return sent.post(fd)

    reduction.DupFd = hand_over


class _Posted(NamedTuple):
    """A descriptor of another process, as what it is open, and where to say that it was received."""

    owner: str
    fd: int
    access: int
    receipts: int

    def detach(self) -> int:
        """Return a descriptor of this process for the same file."""
        taken = os.open(f"/proc/{self.owner}/fd/{self.fd}", self.access | os.O_CLOEXEC)
        with open(f"/proc/{self.owner}/fd/{self.receipts}", "wb", buffering=0) as receipts:
            receipts.write(struct.pack("i", self.fd))
        return taken


class _Outbox:
    """What one process has sent and keeps open until it has been received."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._shown_as = os.readlink("/proc/self")  # Another number where /proc is of another namespace.
        self._received, self._receipts = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()

    def post(self, fd: int) -> _Posted:
        """Return what another process gets the descriptor by; close what was received."""
        with self._lock, suppress(BlockingIOError):
            for (received,) in struct.iter_unpack("i", os.read(self._received, _MOST_BYTES)):
                os.close(received)
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        return _Posted(self._shown_as, os.dup(fd), access, self._receipts)
