"""What a request leaves is freed at once: a collection, for which all requests wait, has nothing to do."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.models import Digits
from tests.serve.server import Server, ask, client, listening

CONNECTION = 60
"""Objects that one connection may leave; a request that refers to itself left 16 more each time."""
OBJECTS = 50_000
"""A started server has more of them."""
ROUNDS = [[10_000.0, 0.0]]
"""Of the slow model: more than the tenth of a second after which a client is watched."""
IMAGE = [[[[0.5] * 8] * 8]]
V2 = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}


def collection(server: Server) -> Any:
    """Let the server collect its garbage; return what it found, and what it doesn't look at any more."""
    server.signal(signal.SIGUSR1)
    assert server.process.stdout is not None
    return json.loads(server.process.stdout.readline())


def collected(artifact: Path, folder: Path) -> Any:
    """Run a server that collects no garbage by itself."""
    options = ("--port", "0", "--json", "--name", "digits", "--timeout-s", "60")
    command = [sys.executable, "-m", "tests.serve.collected", str(artifact), *options]
    return listening(command, folder=folder, env={**os.environ, "PYTHONUNBUFFERED": "1"})


@pytest.fixture(scope="module")
def server(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The digits."""
    with collected(digits.onnx, tmp_path_factory.mktemp("collected")) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/predict", IMAGE, 200),
        ("/predict", {"inputs": {"image": IMAGE}}, 200),
        ("/predict", [["a"]], 422),
        ("/v2/models/digits/infer", V2, 200),
        ("/v2/models/cats/infer", V2, 404),
        ("/nowhere", {}, 404),
    ],
)
def test_requests_leave_nothing_for_the_collector(server: Server, path: str, body: Any, status: int) -> None:
    with client(server.url) as connection:
        ask(connection, "POST", path, body)
        collection(server)
        assert {ask(connection, "POST", path, body).status for _ in range(300)} == {status}
    assert collection(server)["found"] <= CONNECTION


def test_a_client_that_was_watched_while_it_waited_leaves_nothing_either(slow: Path, tmp_path: Path) -> None:
    with collected(slow, tmp_path) as server, client(server.url) as connection:
        ask(connection, "POST", "/predict", ROUNDS)
        collection(server)
        assert {ask(connection, "POST", "/predict", ROUNDS).status for _ in range(10)} == {200}
        assert collection(server)["found"] <= CONNECTION


def test_what_stays_is_looked_at_by_no_collection(digits: Digits, other: Path, tmp_path: Path) -> None:
    place = tmp_path / "current"
    place.symlink_to(digits.onnx)
    with collected(place, tmp_path) as server:
        started = collection(server)["frozen"]
        place.unlink()
        place.symlink_to(other)
        server.signal(signal.SIGHUP)
        server.wait_for("reload")
        server.ask("GET", "/ping")
        reloaded = collection(server)["frozen"]
    assert started > OBJECTS
    assert reloaded > OBJECTS
