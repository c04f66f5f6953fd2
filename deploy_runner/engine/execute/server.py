"""The fork server: a process that has imported what workers need, and forks them.

Importing torch takes about a second, and a forked child has it at once. But the server only imports
and never computes: torch's first operation on several threads starts a pool of OpenMP threads, and
fork(2) copies the pool's locks and counters without its threads, so the child's next operation waits
for ever for threads that don't exist. For the same reason workers are not forked by the runner's own
process: whoever calls `deploy_runner.run` may have computed something in it.

The server talks over one socket. Each message is JSON, with a worker's request and log pipe as
descriptors, which are passed on unread: a request holds secrets, and whatever the server had read would
be in the memory of every worker that it forks later. Answers go back in the same way. When the socket
closes, however the runner has ended, every worker is killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
from typing import Any, NamedTuple

from ...server.children import reaped
from . import worker
from .sandbox import Sandbox, warm_up
from .supervisor import end_children, ended, fork, prepare, tell

__all__ = ["main"]

_LONGEST_BYTES = 1 << 16
_DESCRIPTORS = 2
_MOST_SPARES = 8


def main(fd: int) -> None:
    """Serve requests on the socket `fd` until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare()
    warm_up()
    gc.freeze()  # A collection in a worker would write to, and so copy, every page that it shares with us.
    _Server(socket.socket(fileno=fd)).serve()


class _Worker(NamedTuple):
    """A forked worker: its supervisor, our end of its socket, and what it was asked to do."""

    pid: int
    channel: socket.socket
    action: str = ""


class _Server:
    """Forks spare workers ahead of the requests, so that nobody waits for the fork.

    There is one, and one more for each request that found none while others ran.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._workers: dict[int, _Worker] = {}
        self._spares: list[_Worker] = []
        self._wanted = 1
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        self._selector.register(self._channel, selectors.EVENT_READ)
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        while True:
            lacks = len(self._spares) < self._wanted
            events = self._selector.select(0 if lacks else None)
            if not events and not self._fork_spare(network=False):
                self._wanted = len(self._spares)  # No more can be made now: the next request says so.
            for key, _ in events:
                if key.fileobj is self._channel:
                    if not self._request():
                        self._kill_all()
                        return
                else:
                    os.read(self._wake_r, 4096)
                    self._reap()

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(json.dumps(message).encode())

    def _request(self) -> bool:
        """Hand the next request to the spare worker; False where the channel has closed."""
        message = _receive(self._channel)
        if message is None:
            return False
        request, fds = message
        if "preload" in request:
            os.environ["HOME"] = request["home"]
            self._preload(request["preload"])
        else:
            self._start(request, fds)
        for fd in fds:  # Before the next fork: they are one worker's, with its secrets and its log.
            os.close(fd)
        return True

    def _start(self, request: dict[str, Any], fds: list[int]) -> None:
        action, network = request["action"], request["network"]
        if network or not self._spares:
            self._wanted = min(_MOST_SPARES, max(1, self._wanted + bool(self._workers and not network)))
            if not self._fork_spare(network=network):
                error = "no process can be created for the worker"
                self._say({"event": "exited", "action": action, "status": 0, "error": error})
                return
        spare = self._spares.pop()
        with contextlib.suppress(OSError):
            socket.send_fds(spare.channel, [b"{}"], fds)
        self._workers[spare.pid] = spare._replace(action=action)
        self._say({"event": "started", "action": action, "pid": spare.pid})

    def _preload(self, modules: list[str]) -> None:
        """Import modules; of what is missing or broken the stage says what is wrong, and how to fix it."""
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        gc.freeze()
        while self._spares:  # They lack what has been imported.
            self._spares.pop().channel.close()

    def _fork_spare(self, *, network: bool) -> bool:
        """Fork a worker that waits for its request; say whether it could be."""
        with contextlib.suppress(OSError):
            self._spares.append(_Worker(*fork(_work, network=network, close=self._close)))
            return True
        return False

    def _close(self) -> None:
        """Close in a child what is the server's."""
        self._selector.close()
        self._channel.close()
        for fd in (self._wake_r, self._wake_w):
            os.close(fd)
        for other in (*self._workers.values(), *self._spares):
            other.channel.close()

    def _reap(self) -> None:
        """Report each worker that has ended, once nothing of it is left."""
        for pid, status in reaped():
            gone = self._workers.pop(pid, None)
            if gone is None:
                self._spares = [spare for spare in self._spares if spare.pid != pid]
                continue
            if status:  # Its supervisor was killed, and has ended nothing itself.
                end_children([*self._workers, *(spare.pid for spare in self._spares)])
            end = ended(gone.channel, status)
            self._say({"event": "exited", "action": gone.action, "status": end.status,
                       "confinement": end.confinement})  # fmt: skip

    def _kill_all(self) -> None:
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        end_children()


def _work(channel: socket.socket, sandbox: Sandbox) -> int:
    """Wait for a request and run it."""
    message = _receive(channel)
    if message is None or len(message[1]) != _DESCRIPTORS:
        return 0
    request_fd, log_fd = message[1]
    with open(request_fd, "rb") as file:
        request = json.loads(file.read())
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, fd in enumerate((nothing, log_fd, log_fd)):
        os.dup2(fd, target)
    for fd in (nothing, log_fd):
        os.close(fd)
    return worker.run(request, sandbox, lambda confinement: tell(channel, confinement))


def _receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return a message and its descriptors, or None where the channel has closed."""
    try:
        data, fds, _, _ = socket.recv_fds(channel, _LONGEST_BYTES, _DESCRIPTORS)
    except ConnectionResetError:
        return None
    return (json.loads(data), fds) if data else None


if __name__ == "__main__":
    import sys

    main(int(sys.argv[1]))
