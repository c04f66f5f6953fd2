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

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(fd: int, modules: list[str]) -> None:
    """Serve requests on the socket `fd` until it closes. A module that is missing is left out."""
    libc = ctypes.CDLL(None)
    # Orphans of a worker come to this process, which can then wait for all of a group to die.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in modules:
        # The stage itself says what is missing, and how to install it.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    _Server(socket.socket(fileno=fd), libc).serve()


class _Server:
    def __init__(self, channel: socket.socket, libc: ctypes.CDLL) -> None:
        self._channel = channel
        self._libc = libc
        self._workers: dict[int, str] = {}
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self._channel, selectors.EVENT_READ)
        selector.register(self._wake_r, selectors.EVENT_READ)
        self._say({"event": "ready"})
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
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, 4, 1)
        except ConnectionResetError:
            return False
        if not data:
            return False
        while len(data) < 4:
            data += self._channel.recv(4 - len(data))
        size = int.from_bytes(data, "big")
        body = bytearray()
        while len(body) < size:
            chunk = self._channel.recv(size - len(body))
            if not chunk:
                return False
            body += chunk
        self._fork(json.loads(body), fds[0])
        os.close(fds[0])
        return True

    def _fork(self, request: dict[str, Any], log_fd: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._say({"event": "exited", "action": request["action"], "status": 0,
                       "error": f"no process can be made: {error.strerror}"})  # fmt: skip
            return
        if pid == 0:
            self._child(request, log_fd)
        self._workers[pid] = request["action"]
        self._say({"event": "started", "action": request["action"], "pid": pid})

    def _child(self, request: dict[str, Any], log_fd: int) -> None:
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.setsid()
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log_fd, 1)
            os.dup2(log_fd, 2)
            os.closerange(3, 256)
            code = worker.run(request)
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


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
