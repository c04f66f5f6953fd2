"""A server in a process of its own, as `deploy-runner serve` starts it, and a client."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

__all__ = [
    "LONG",
    "Answer",
    "Server",
    "answer_of",
    "ask",
    "client",
    "listening",
    "refusal",
    "running",
    "serving",
    "until",
]

LONG = [[100_000.0, 0.0]]
"""Rounds of the slow model that take about a second."""

_JSON = "application/json"
_STARTED_S = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    @property
    def problems(self) -> list[str]:
        """Return what a refusal says."""
        return [problem["msg"] for problem in self.json["detail"]]


class Server:
    """A running server. `log` is what it has written to standard error."""

    def __init__(self, process: subprocess.Popen[str], announced: Mapping[str, Any], log: Path) -> None:
        self.process = process
        self.url = str(announced["url"])
        self.digest = str(announced["digest"])
        self.name = str(announced["name"])
        self._log = log

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request on a connection of its own; `body` is sent as JSON, `raw` as it is."""
        with client(self.url) as connection:
            return ask(connection, method, path, body, raw=raw, headers=headers)

    def predict(self, body: Any, **more: Any) -> Answer:
        """POST JSON to /predict."""
        return self.ask("POST", "/predict", body, **more)

    def figures(self) -> dict[str, float]:
        """Return /metrics: name with its labels → value."""
        text = self.ask("GET", "/metrics").body.decode()
        return {
            sample.name + "".join(f" {v}" for v in sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def events(self) -> list[dict[str, Any]]:
        """Return what was logged so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that `deploy-runner serve` is."""
        self.process.send_signal(number)

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until the log has an event so often, and return the last."""
        with watched(self._log) as changed:
            while len(found := [e for e in self.events() if e["event"] == event]) < count:
                assert self.process.poll() is None, self._log.read_text()
                changed()
        return found[-1]


@contextmanager
def watched(path: Path) -> Iterator[Any]:
    """Give a function that blocks until a file may have grown: `tail -f` says so."""
    tail = subprocess.Popen(
        ["tail", "-n", "+1", "-F", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert tail.stdout is not None
    output = tail.stdout.fileno()

    def changed() -> None:
        ready, _, _ = select.select([output], [], [], _STARTED_S)
        assert ready, f"nothing is written to {path.name}"
        os.read(output, 1 << 16)

    try:
        yield changed
    finally:
        tail.kill()
        tail.wait()
        tail.stdout.close()


def refusal(*args: object) -> str:
    """Run `deploy-runner serve` on what can't be served; return the last line that it says."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy_runner", "serve", *map(str, args)],
        capture_output=True, text=True, timeout=_STARTED_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@contextmanager
def client(url: str) -> Iterator[http.client.HTTPConnection]:
    """Give a connection that is kept alive."""
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
    try:
        yield connection
    finally:
        connection.close()


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any = None,
    *,
    raw: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request and return its response."""
    data = json.dumps(body).encode() if raw is None and body is not None else raw
    connection.request(method, path, data, {"Content-Type": _JSON, **(headers or {})})
    return answer_of(connection)


def answer_of(connection: http.client.HTTPConnection) -> Answer:
    """Return the response to the request that was sent last."""
    response = connection.getresponse()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


@contextmanager
def serving(artifact: object, *options: object, folder: Path, cwd: Path | None = None) -> Iterator[Server]:
    """Run `deploy-runner serve ARTIFACT` on a free port; SIGTERM has to end it with 0."""
    command = [
        sys.executable,
        "-m",
        "deploy_runner",
        "serve",
        str(artifact),
        "--port",
        "0",
        "--json",
        *map(str, options),
    ]
    with listening(command, folder=folder, cwd=cwd) as server:
        yield server
        if server.process.poll() is None:
            server.signal(signal.SIGTERM)
        assert server.process.wait(60) == 0, server.events()


@contextmanager
def listening(
    command: Sequence[str], *, folder: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run a command that serves, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.jsonl"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Server(process, json.loads(line), log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def until(true: Callable[[], bool]) -> None:
    """Ask the server again and again."""
    for _ in range(20_000):
        if true():
            return
    raise AssertionError("it never came true")


@contextmanager
def running(server: Server, body: Any = LONG) -> Iterator[Future[Answer]]:
    """Send a long request, and go on when the model runs it."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.predict, body)
        until(lambda: server.figures()["serve_running_batches"] == 1)
        yield answer
