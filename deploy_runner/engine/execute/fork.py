"""The runner's side of a fork server: start it, request workers, read its answers."""

from __future__ import annotations

import json
import os
import site
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...types import StageNode
from ...usercode.installed import search_path

__all__ = ["ForkServer", "ForkServers", "environment", "interpreter", "preloads"]

_LONGEST_BYTES = 1 << 16
_BUILTIN = "deploy_runner.stages."


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


def preloads(nodes: Iterable[StageNode]) -> dict[bool, list[str]]:
    """Return what the fork servers for these stages import: the heavy one (True) and the other."""
    modules: dict[bool, dict[str, None]] = {True: {}, False: {}}
    known = list(nodes)
    for node in known:
        modules[bool(node.preload)] |= dict.fromkeys(node.preload)
    for node in known:
        if node.module.startswith(_BUILTIN):
            modules[bool(node.preload)][node.module] = None
    return {heavy: list(found) for heavy, found in modules.items()}


class ForkServers:
    """The fork servers of one process, each started when it is first needed.

    Stages that need no heavy library have a server of their own, whose workers start faster. `modules` is
    what each imports; `home` returns the folder that libraries may write to while they are imported.
    `early` is a server without heavy libraries that was started in advance.
    """

    def __init__(
        self,
        modules: Mapping[bool, Sequence[str]],
        home: Callable[[], Path],
        *,
        threads: int,
        early: ForkServer | None = None,
    ) -> None:
        self._modules = modules
        self._home = home
        self._threads = threads
        self._early = early
        self._running: dict[bool, ForkServer] = {}

    def also(self, modules: Mapping[bool, Sequence[str]]) -> None:
        """Have the servers import these modules too."""
        for heavy, names in modules.items():
            new = [name for name in names if name not in self._modules[heavy]]
            self._modules = {**self._modules, heavy: [*self._modules[heavy], *new]}
            if new and heavy in self._running:
                self._running[heavy].preload(new, home=str(self._home()))

    def get(self, *, heavy: bool) -> ForkServer:
        """Return a running server."""
        if heavy not in self._running:
            server = None
            if not heavy:
                server, self._early = self._early, None
            server = server or ForkServer(threads=self._threads)
            server.preload(self._modules[heavy], home=str(self._home()))
            self._running[heavy] = server
        return self._running[heavy]

    def forget(self, *, heavy: bool) -> None:
        """Stop a server that has ended, so that the next worker gets a new one."""
        self._running.pop(heavy).stop()

    def stop(self, *, grace_s: float = 0) -> None:
        """End the servers, after at most `grace_s` for each to end its workers."""
        while self._running:
            self._running.popitem()[1].stop(grace_s=grace_s)
