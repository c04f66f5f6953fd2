"""A server under measurement: started, asked, watched and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from .contenders import SERVERS, Contender

__all__ = ["Running", "running"]

START_SECONDS = 60
STOP_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers on a port of 127.0.0.1; its figures are those of its whole process tree."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    content_type: str = "application/json"

    @property
    def url(self) -> str:
        """Return where it predicts."""
        return f"http://127.0.0.1:{self.port}/predict"

    def ask(self, body: bytes) -> bytes:
        """Return the body of the answer to one request. Raises OSError where there is none."""
        request = urllib.request.Request(self.url, body, {"Content-Type": self.content_type})
        with urllib.request.urlopen(request, timeout=10) as reply:
            found: bytes = reply.read()
        return found

    def tree(self) -> list[psutil.Process]:
        """Return its processes."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu_s(self) -> float:
        """Return the seconds of CPU that its processes have used."""
        return sum(sum(p.cpu_times()[:2]) for p in self.tree())

    def rss_bytes(self) -> int:
        """Return the resident memory of its processes."""
        return sum(p.memory_info().rss for p in self.tree())


@contextlib.contextmanager
def running(
    contender: Contender, model: Path, folder: Path, body: bytes, content_type: str = "application/json"
) -> Iterator[Running]:
    """Serve a model until the block ends; it begins once a request is answered."""
    port, log = _free_port(), folder / f"{contender.name}.log"
    env = os.environ | {"OMP_NUM_THREADS": "1", "MODEL": str(model)} | dict(contender.env)
    with log.open("wb") as output:
        process = subprocess.Popen(contender.start(model, port), cwd=SERVERS, env=env, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    server = Running(contender.name, port, process, log, content_type)
    try:
        _wait(server, body)
        yield server
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


def _wait(server: Running, body: bytes) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            server.ask(body)
            return
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(
                f"{server.name} does not answer; its log says:\n{server.log.read_text()[-2000:]}"
            )
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to stop, then end what is left of its group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
