"""The runner's side of a fork server: start it, request workers, read its answers."""

from __future__ import annotations

import json
import os
import site
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ...usercode.installed import search_path

__all__ = ["ForkServer", "environment", "interpreter"]

_LONGEST_BYTES = 1 << 16


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
        self.channel, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        command = [
            *interpreter("from deploy_runner.engine.execute.server import main; main(int(sys.argv.pop()))"),
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

    def preload(self, modules: Sequence[str], *, home: str) -> None:
        """Have the server import modules, for the workers that it forks from then on.

        Some libraries write to the home folder when they are imported: `home` is theirs.
        """
        self.channel.send(json.dumps({"preload": list(modules), "home": home}).encode())

    def spawn(self, request: dict[str, Any], log_fd: int) -> None:
        """Ask for a worker; `log_fd` becomes its standard output and error.

        The request goes by a descriptor, which the server hands on without reading it.
        """
        with open(os.memfd_create("request"), "w+b") as file:
            file.write(json.dumps(request).encode())
            file.seek(0)
            head = {name: request[name] for name in ("action", "network")}
            socket.send_fds(self.channel, [json.dumps(head).encode()], [file.fileno(), log_fd])

    def answers(self) -> list[dict[str, Any]]:
        """Return the answers that have come. Raises EOFError if the server has ended."""
        data = self.channel.recv(_LONGEST_BYTES)
        if not data:
            raise EOFError
        return [json.loads(data)]

    def stop(self, *, grace_s: float = 0) -> None:
        """End the server, after at most `grace_s` for it to end its workers; they end with it."""
        self.channel.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self._process.kill()
        self._process.wait()
