"""`deploy-runner ui` in a process of its own, and requests to it."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.conftest import TEXT_STAGES, Project, clean_environment

__all__ = ["Answer", "Page", "run_twice", "showing"]

STAGES = """
a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "!"}}
b: {uses: text.upper, matrix: {n: [x, yy]}, inputs: {text: "${{ stages.a.outputs.text }}"}, with: {suffix: "${{ matrix.n }}"}}
bad: {uses: text.odd, inputs: {text: "${{ stages.a.outputs.text }}"}, with: {how: gate}}
"""


def run_twice(folder: Path) -> Project:
    """Make a project whose pipeline was run twice, with another value each."""
    made = Project(folder)
    made.write("stages/texts.py", TEXT_STAGES)
    made.write("in.txt", "hello")
    made.pipeline(STAGES)
    made.run(exits=1)
    made.run("--set", "stages.a.with.suffix=more", exits=1)
    return made


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: Mapping[str, str]
    text: str


class Page:
    """A running page. `address` has the token; `url` is its origin."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self.address = address
        parts = urlsplit(address)
        self.url, self.port = f"http://{parts.netloc}", int(parts.port or 0)
        self.token = parts.query.removeprefix("token=")

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Send one request with these headers alone; `_` stands for `-` in their names."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=named)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, text)
        finally:
            connection.close()

    def get(self, path: str) -> str:
        """Return a page that there is."""
        answer = self.ask(path, authorization=f"Bearer {self.token}")
        assert answer.status == 200, answer
        return answer.text

    def post(self, path: str) -> str:
        """Return what a button of a page leads to."""
        answer = self.ask(path, "POST", authorization=f"Bearer {self.token}", origin=self.url)
        assert answer.status == 200, answer
        return answer.text


@contextmanager
def showing(folder: Path, *args: str, **env: str) -> Iterator[Page]:
    """Run the page over the project in a folder, and end it as Ctrl-C does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy_runner", "ui", *args, "--port", "0"],
        cwd=folder,
        env={**clean_environment(), **env},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        assert first.startswith("open http://127.0.0.1:"), first
        yield Page(process, first.split()[1])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        code = process.wait(60)
        process.stdout.close()
    assert code == 0
