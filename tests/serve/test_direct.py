"""POSTs of tensors are answered by the connection itself, exactly as those that go through the app."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.serve.models import Digits
from tests.serve.server import (
    LONG,
    Answer,
    Server,
    answer_of,
    ask,
    client,
    listening,
    running,
    serving,
    until,
)

IMAGE = [[[[0.5] * 8] * 8]]
TENSOR = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
INFER = "/v2/models/digits/infer"
CALLS = 180
"""Functions that a request may call, all of C counted; through the app it is twice that."""


def json_of(body: Any) -> bytes:
    return json.dumps(body).encode()


REQUESTS = {
    "a list": ("/predict", {}, json_of(IMAGE)),
    "names": ("/invocations", {}, json_of({"inputs": {"image": IMAGE}})),
    "the protocol": (INFER, {}, json_of({"id": "7", "inputs": [TENSOR]})),
    "CSV to CSV": ("/predict", {"content-type": "text/csv", "accept": "text/csv"}, b",".join([b"1"] * 64)),
    "NPZ out": ("/predict", {"accept": "application/x-npz"}, json_of(IMAGE)),
    "binary out": (INFER, {}, json_of({"inputs": [TENSOR], "parameters": {"binary_data_output": True}})),
    "no JSON": ("/predict", {}, b'{"inputs"'),
    "no JSON to the protocol": (INFER, {}, b"[NaN]"),
    "another shape": ("/predict", {}, json_of([[1, 2, 3]])),
    "another shape to the protocol": (INFER, {}, json_of({"inputs": [{**TENSOR, "shape": [1, 2]}]})),
    "too many samples": ("/predict", {}, json_of(IMAGE * 9)),
    "no such type": ("/predict", {"content-type": "text/html"}, b"<p>"),
    "no such answer": ("/predict", {"accept": "text/html, image/*;q=0.5"}, json_of(IMAGE)),
    "a length that isn't the head's": (INFER, {"inference-header-content-length": "9999"}, json_of({})),
    "a type of many letters": ("/predict", {"content-type": "é" * 300}, b"1"),
}


def seen(answer: Answer) -> tuple[int, Mapping[str, str], bytes]:
    return answer.status, {name: v for name, v in answer.headers.items() if name != "date"}, answer.body


@pytest.mark.parametrize(("path", "headers", "body"), REQUESTS.values(), ids=REQUESTS.keys())
def test_a_whole_request_is_answered_as_one_in_chunks(
    fastapi: Server, path: str, headers: dict[str, str], body: bytes
) -> None:
    sent = {"Content-Type": "application/json"} | {name.title(): v for name, v in headers.items()}
    with client(fastapi.url) as connection:
        connection.request("POST", path, body, sent)
        whole = answer_of(connection)
        connection.request("POST", path, iter([body]), sent)
        assert seen(whole) == seen(answer_of(connection))


def test_a_request_of_tensors_calls_few_functions(digits: Digits, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.serve.collected", str(digits.onnx), "--port", "0", "--json"]
    with (
        listening(command, folder=tmp_path, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as server,
        client(server.url) as connection,
    ):
        assert server.process.stdout is not None
        found = []
        for _ in range(2):
            server.signal(signal.SIGUSR2)
            found.append(json.loads(server.process.stdout.readline())["calls"])
            for _ in range(100):
                ask(connection, "POST", "/predict", IMAGE)
    assert found[1] <= 100 * CALLS


def talk(server: Server, *sent: bytes) -> bytes:
    """Send pieces, each once the server could have answered the one before; return all until it closes."""
    place = urllib.parse.urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), 60) as connection:
        for piece in sent:
            connection.sendall(piece)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def head(*more: str, length: int = 5, version: str = "1.1", target: str = "/predict") -> bytes:
    lines = [f"POST {target} HTTP/{version}", "Host: x", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


CLOSE = "Connection: close"


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param([head() + b"[[1]]" + head(CLOSE) + b"[[2]]"], [422, 422], id="two at once"),
        pytest.param([head()[:20], head()[20:] + b"[[", b"1]]" + head(CLOSE) + b"[[1]]"], [422, 422], id="pieces"),
        pytest.param([head() + b"[[1]]" + head("Transfer-Encoding: x")], [422, 400], id="nonsense after one"),
        pytest.param([head(version="1.0") + b"[[1]]"], [422], id="HTTP/1.0"),
        pytest.param([head("Expect: 100-continue", CLOSE), b"[[1]]"], [100, 422], id="asked first"),
        pytest.param([head(CLOSE, target="/predict?x=1") + b"[[1]]"], [422], id="a query"),
        pytest.param([head(CLOSE, target="/predic%74") + b"[[1]]"], [422], id="an escaped path"),
        pytest.param([head(CLOSE, length=0)], [400], id="no body"),
        pytest.param([head(CLOSE) + b"[[1]]" + head() + b"[[2]]"], [422], id="one after the last"),
        pytest.param([head("Upgrade: h2c", "Connection: close, upgrade") + b"[[1]]"], [400], id="an upgrade"),
    ],
)  # fmt: skip
def test_unusual_requests_are_answered_in_order(
    fastapi: Server, sent: list[bytes], statuses: list[int]
) -> None:
    answers = talk(fastapi, *sent)
    assert [int(part.split()[0]) for part in answers.split(b"HTTP/1.1 ")[1:]] == statuses


@pytest.fixture(scope="module")
def busy(slow: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model takes as long as it is asked to."""
    options = ("--access-log", "--max-batch", "1", "--name", "a model")
    with serving(slow, *options, folder=tmp_path_factory.mktemp("busy")) as found:
        yield found


def test_a_client_that_goes_while_it_waits_is_counted_and_logged(busy: Server) -> None:
    place = urllib.parse.urlsplit(busy.url)
    with running(busy) as answer:
        with socket.create_connection((place.hostname, place.port), 60) as connection:
            connection.sendall(head(length=7) + b"[[1,2]]")
            until(lambda: busy.figures()["serve_queue_samples"] == 1)
        until(lambda: busy.figures()["serve_queue_samples"] == 0)
        assert busy.figures()["serve_requests_total /predict 499"] == 1
        assert not answer.done()
    assert answer.result().status == 200
    logged = [event for event in busy.events() if event.get("method") == "POST"][-2:]
    assert [(event["path"], event["status"]) for event in logged] == [("/predict", 499), ("/predict", 200)]


def test_a_name_with_a_space_is_found(busy: Server) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    assert busy.ask("POST", "/v2/models/a%20model/infer", body).json["outputs"][0]["data"] == [3.0]


@pytest.mark.slow
def test_what_waits_beyond_drain_s_is_ended(slow: Path, tmp_path: Path) -> None:
    with serving(slow, "--drain-s", 1, "--max-batch", "1", folder=tmp_path) as server:
        with running(server, [[4 * LONG[0][0], 0.0]]) as first, running(server) as second:
            server.signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
        assert all(isinstance(answer.exception(), ConnectionError) for answer in (first, second))
