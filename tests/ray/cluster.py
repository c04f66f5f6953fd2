"""A Ray cluster of several nodes on this machine, in a process of its own that all test processes share.

    python -m tests.ray.cluster FOLDER

listens on FOLDER/socket. Each line there is a JSON command; each is answered by one line. The cluster ends
when the last connection has closed.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

__all__ = ["Cluster", "joined"]

NODES = {"one": 1, "two": 1}
"""The nodes that are always there, and their CPUs. Each has a resource of its name; `two` has two GPUs."""
_STARTED_S = 180
_FIRST_S = 60
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


class Cluster:
    """The cluster as a test sees it."""

    def __init__(self, channel: socket.socket, folder: Path) -> None:
        self._channel = channel
        self._file = channel.makefile("r")
        self.folder = folder
        described = self._ask("describe")
        self.address: str = described["address"]
        self.client_address: str = described["client_address"]

    def _ask(self, command: str, *arguments: object) -> Any:
        self._channel.sendall(json.dumps([command, *arguments]).encode() + b"\n")
        return json.loads(self._file.readline())

    def home(self, name: str) -> Path:
        """Return the folder of a node's own store."""
        return self.folder / "homes" / name

    def add(self, name: str, cpus: int = 1, **env: str) -> None:
        """Add a node with so many CPUs, a resource of its name, and this environment."""
        self._ask("add", name, cpus, env)

    def kill(self, name: str) -> None:
        """End a node without grace, with all its processes."""
        self._ask("kill", name)

    def remove(self, name: str) -> None:
        """End a node that was added, unless it was killed."""
        self._ask("remove", name)

    def processes(self, name: str) -> list[int]:
        """Return the ids of the processes that have a node's home in their environment."""
        wanted = f"DEPLOY_RUNNER_HOME={self.home(name)}".encode()
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if wanted in Path("/proc", pid, "environ").read_bytes().split(b"\0"):
                    found.append(int(pid))
            except OSError:
                continue
        return found


@contextmanager
def joined(folder: Path) -> Iterator[Cluster]:
    """Join the cluster of this folder; the first to do so starts it, and tries twice."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "socket"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for attempt in (1, 2):
            if not place.exists() and not _start(folder, place) and attempt == 2:
                raise RuntimeError((folder / "log").read_text())
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(str(place))
    with channel:
        yield Cluster(channel, folder)


def _start(folder: Path, place: Path) -> bool:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray.cluster", str(folder)],
            cwd=ROOT,
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + _STARTED_S
    while not place.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            return False
        time.sleep(0.1)
    process.returncode = 0  # It lives on, for the other test processes.
    return True


# In the process of the cluster --------------------------------------------------------------------


class _Host:
    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._client_port = free.getsockname()[1]
        head = {"num_cpus": 0, "include_dashboard": False, "ray_client_server_port": self._client_port}
        self._cluster = Nodes(initialize_head=True, connect=False, head_node_args=head)
        self._nodes: dict[str, Any] = {}
        for name, cpus in NODES.items():
            self.add(name, cpus, {})

    def describe(self) -> dict[str, str]:
        host = self._cluster.address.rpartition(":")[0]
        return {"address": self._cluster.address, "client_address": f"ray://{host}:{self._client_port}"}

    def add(self, name: str, cpus: int, env: Mapping[str, str]) -> None:
        home = {"DEPLOY_RUNNER_HOME": str(self._folder / "homes" / name), "DEPLOY_RUNNER_CACHE_KEY": ""}
        self._nodes[name] = self._cluster.add_node(
            num_cpus=cpus, num_gpus=2 if name == "two" else 0, resources={name: 1}, env_vars={**home, **env},
            object_store_memory=80_000_000,
        )  # fmt: skip

    def kill(self, name: str) -> None:
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def remove(self, name: str) -> None:
        if name in self._nodes:
            self._cluster.remove_node(self._nodes.pop(name))

    def shutdown(self) -> None:
        shutdown: Any = self._cluster.shutdown
        shutdown()


def _serve(folder: Path) -> None:
    host = _Host(folder)
    try:
        with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector:
            server.bind(f"{folder}/new")
            server.listen()
            os.rename(f"{folder}/new", f"{folder}/socket")
            selector.register(server, selectors.EVENT_READ)
            joined_once = time.monotonic() + _FIRST_S
            while len(selector.get_map()) > 1 or time.monotonic() < joined_once:
                for key, _ in selector.select(1):
                    if key.fileobj is server:
                        channel, _ = server.accept()
                        selector.register(channel, selectors.EVENT_READ, channel.makefile("r"))
                        joined_once = 0.0
                    elif line := key.data.readline():
                        command, *arguments = json.loads(line)
                        answer = getattr(host, command)(*arguments)
                        key.fileobj.sendall(json.dumps(answer).encode() + b"\n")  # type: ignore[union-attr]
                    else:
                        selector.unregister(key.fileobj)
                        key.data.close()
                        key.fileobj.close()  # type: ignore[union-attr]
    finally:
        os.unlink(f"{folder}/socket")
        host.shutdown()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
