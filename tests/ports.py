"""Free ports, and servers that say on them when they are ready."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.waiting import wait_until

__all__ = ["answers", "free", "started"]


def free(count: int) -> list[int]:
    """Return ports of loopback on which nothing listens."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(server.getsockname()[1]) for server in servers]


def answers(url: str) -> bool:
    """Say whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def started(
    command: Sequence[object], log: Path, *, ready: Callable[[], bool], env: Mapping[str, str] | None = None,
    limit_s: float = 120,
) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """Run a server from when it is ready until the block ends."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(part) for part in command], env={**os.environ, **(env or {})}, stdout=file,
            stderr=subprocess.STDOUT, cwd=log.parent, start_new_session=True,
        )  # fmt: skip

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        return ready()

    try:
        wait_until(is_ready, limit_s=limit_s)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
