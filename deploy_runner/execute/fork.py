"""The runner's side of a fork server: start it, ask for workers, read its answers."""

from __future__ import annotations

import json
import os
import site
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ..installed import search_path

__all__ = ["ForkServer", "environment", "interpreter"]


def interpreter(program: str) -> list[str]:
    """Return the command of a Python that runs a program with the runner's own path, and nothing more.

    The path is handed over as it is: whatever made it (PYTHONPATH, a user site, `.pth` files, the
    program that called us), code is found where the runner found it when it made the keys.
    """
    flags = ["-P"] if site.ENABLE_USER_SITE else ["-sP"]
    set_path = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    return [sys.executable, *flags, "-c", set_path + program, json.dumps(search_path())]


def environment(threads: int) -> dict[str, str]:
    """Return all that the fork server's Python has of an environment."""
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYDANTIC_DISABLE_PLUGINS": "__all__",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    if site.ENABLE_USER_SITE:  # Without the real HOME Python can't guess where `pip install --user` puts it.
        env["PYTHONUSERBASE"] = site.getuserbase()
    return env


class ForkServer:
    """One fork server process. `channel` is what a selector waits on."""

    def __init__(self, *, threads: int) -> None:
        self.channel, theirs = socket.socketpair()
        command = [
            *interpreter("from deploy_runner.execute.server import main; main(int(sys.argv.pop()))"),
            str(theirs.fileno()),
        ]
        with theirs:
            self._process = subprocess.Popen(
                command,
                env=environment(threads),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._unread = b""

    def preload(self, modules: Sequence[str], *, home: str) -> None:
        """Have the server import modules, for the workers that it forks from then on.

        Some libraries write to the home folder when they are imported: `home` is theirs.
        """
        body = json.dumps({"preload": list(modules), "home": home}).encode()
        self.channel.sendall(len(body).to_bytes(4, "big") + body)

    def spawn(self, request: dict[str, Any], log_fd: int) -> None:
        """Ask for a worker; `log_fd` becomes its standard output and error."""
        body = json.dumps(request).encode()
        socket.send_fds(self.channel, [len(body).to_bytes(4, "big")], [log_fd])
        self.channel.sendall(body)

    def answers(self) -> list[dict[str, Any]]:
        """Return the answers that have come. Raises EOFError where the server has died."""
        data = self.channel.recv(65536)
        if not data:
            raise EOFError
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        """End the server; a worker that still runs dies with it."""
        self.channel.close()
        self._process.kill()
        self._process.wait()
