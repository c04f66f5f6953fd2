"""The fork server: a process that has imported what workers need, and forks them.

It only imports and never computes: a fork after a computation of torch may hang for ever. It
talks over one socket: requests come as length-prefixed JSON with the log pipe's descriptor,
answers go back as JSON lines. When the socket closes, because the runner has ended in whatever
way, every worker is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any

from . import worker
from .sandbox import Sandbox, warm_up

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(fd: int) -> None:
    """Serve requests on the socket `fd` until it closes."""
    libc = ctypes.CDLL(None)
    # Orphans of a worker come to this process, which can then wait for all of a group to die.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warm_up()
    gc.freeze()
    _Server(socket.socket(fileno=fd), libc).serve()


class _Server:
    """Forks a spare worker ahead of each request, so that nobody waits for the fork."""

    def __init__(self, channel: socket.socket, libc: ctypes.CDLL) -> None:
        self._channel = channel
        self._libc = libc
        self._workers: dict[int, str] = {}
        self._spare: tuple[int, socket.socket] | None = None
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self._channel, selectors.EVENT_READ)
        selector.register(self._wake_r, selectors.EVENT_READ)
        self._fork_spare(network=False)
        while True:
            for key, _ in selector.select():
                if key.fileobj is self._channel:
                    if not self._request():
                        self._kill_all()
                        return
                else:
                    os.read(self._wake_r, 4096)
                    self._reap()

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._channel.sendall(json.dumps(message).encode() + b"\n")

    def _request(self) -> bool:
        """Hand the next request to the spare worker; False where the channel has closed."""
        message = _receive(self._channel)
        if message is None:
            return False
        body, log_fd = message
        request = json.loads(body)
        if "preload" in request:
            os.environ["HOME"] = request["home"]
            self._preload(request["preload"])
            return True
        if self._spare is None or request["network"]:
            self._fork_spare(network=request["network"])
        if self._spare is None:
            self._say({"event": "exited", "action": request["action"], "status": 0,
                       "error": "no process can be made for the worker"})  # fmt: skip
        else:
            pid, spare = self._spare
            with spare, contextlib.suppress(OSError):
                _send(spare, body, log_fd)
            self._spare = None
            self._workers[pid] = request["action"]
            self._say({"event": "started", "action": request["action"], "pid": pid})
            self._fork_spare(network=False)
        os.close(log_fd)
        return True

    def _preload(self, modules: list[str]) -> None:
        """Import modules; one that is missing is left out, and the stage says how to install it."""
        for module in modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        gc.freeze()
        self._fork_spare(network=False)

    def _fork_spare(self, *, network: bool) -> None:
        """Fork a worker that waits for its request; one that waits already is let go."""
        if self._spare is not None:
            self._spare[1].close()
            self._spare = None
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:
            return
        if pid == 0:
            ours.close()
            self._channel.close()
            self._child(theirs, network=network)
        theirs.close()
        self._spare = (pid, ours)

    def _child(self, channel: socket.socket, *, network: bool) -> None:
        """Wait for a request, run it, and end; never returns."""
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.setsid()
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            sandbox = Sandbox(network=network)
            message = _receive(channel)
            if message is None:
                os._exit(0)
            body, log_fd = message
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log_fd, 1)
            os.dup2(log_fd, 2)
            os.close(log_fd)
            channel.close()
            code = worker.run(json.loads(body), sandbox)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        """Report each worker that has ended, once nothing of its process group is left."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            pid = info.si_pid
            if pid not in self._workers:
                os.waitpid(pid, 0)
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.waitpid(-pid, 0)
            self._say({"event": "exited", "action": self._workers.pop(pid), "status": status})

    def _kill_all(self) -> None:
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _send(channel: socket.socket, body: bytes, log_fd: int) -> None:
    socket.send_fds(channel, [len(body).to_bytes(4, "big")], [log_fd])
    channel.sendall(body)


def _receive(channel: socket.socket) -> tuple[bytes, int] | None:
    """Return a message's body and its descriptor (or -1), or None where the channel has closed."""
    try:
        data, fds, _, _ = socket.recv_fds(channel, 4, 1)
        if not data:
            return None
        while len(data) < 4:
            data += channel.recv(4 - len(data))
        body = bytearray()
        size = int.from_bytes(data, "big")
        while len(body) < size:
            chunk = channel.recv(size - len(body))
            if not chunk:
                return None
            body += chunk
    except ConnectionResetError:
        return None
    return bytes(body), fds[0] if fds else -1


if __name__ == "__main__":
    main(int(sys.argv[1]))
