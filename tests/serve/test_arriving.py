"""What takes too long to arrive, or has too large a head: ended, by sockets that are really slow."""

from __future__ import annotations

import json
import select
import socket
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial

import psutil
import pytest

from tests.serve.models import Digits
from tests.serve.server import Server, serving, until

ROW = b"[" + b"[" + b",".join([b"0.5"] * 64) + b"]]"
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"


@pytest.fixture(scope="module", params=["fastapi", "flask"])
def hasty(
    request: pytest.FixtureRequest, digits: Digits, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose requests have to be there within a second."""
    options = ("--server", request.param, "--name", "digits", "--timeout-s", 1)
    with serving(digits.onnx, *options, folder=tmp_path_factory.mktemp("hasty")) as server:
        yield server


def opened(server: Server) -> socket.socket:
    place = urllib.parse.urlsplit(server.url)
    return socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=60)


def to_the_end(connection: socket.socket, trickle: bytes = b"") -> bytes:
    """Read until the server closes; meanwhile send a byte whenever nothing has come for a while."""
    found = b""
    while True:
        ready, _, _ = select.select([connection], [], [], 0.05 if trickle else 60)
        try:
            if ready and not (part := connection.recv(1 << 16)):
                return found
            if ready:
                found += part
            elif trickle:
                connection.sendall(trickle)
        except ConnectionError:
            return found


def test_what_stalls_is_ended_and_others_are_answered_meanwhile(hasty: Server) -> None:
    infer = HEAD.replace(b"/predict", b"/v2/models/digits/infer")
    begun = [HEAD, HEAD + b"\r\n[[1,", HEAD + b"\r\n"] * 60 + [infer + b"\r\n{"]
    before = hasty.figures()
    with ExitStack() as stack:
        stalled = [stack.enter_context(closing(opened(hasty))) for _ in begun]
        for connection, data in zip(stalled, begun, strict=True):
            connection.sendall(data)
        assert hasty.predict(json.loads(ROW)).status == 200
        answers = [to_the_end(connection).partition(b"\r\n\r\n") for connection in stalled]
    assert {head.split()[1] for head, _, _ in answers} == {b"408"}
    said = "the request didn't arrive within 1 s"
    assert json.loads(answers.pop()[2]) == {"error": said}
    assert {json.loads(body)["detail"][0]["msg"] for _, _, body in answers} == {said}
    after = hasty.figures()
    late = sum(after[name] - before.get(name, 0) for name in after if name.endswith(" 408"))
    assert late >= 121, "those that had a head are counted"


def test_a_byte_now_and_then_does_not_help(hasty: Server) -> None:
    with closing(opened(hasty)) as head, closing(opened(hasty)) as body, ThreadPoolExecutor(2) as pool:
        head.sendall(HEAD)
        body.sendall(HEAD + b"\r\n")
        for answer in pool.map(partial(to_the_end, trickle=b"1"), (head, body)):
            assert b" 408 " in answer


@pytest.mark.parametrize("hasty", ["fastapi"], indirect=True)
def test_answers_that_are_not_read_are_ended(hasty: Server) -> None:
    """waitress keeps what isn't read, up to 16 MiB, and closes the connection after 75 s."""
    process = psutil.Process(hasty.process.pid)
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(hasty.url.rpartition(":")[2])))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1500)
        ours = connection.getsockname()
        until(lambda: ours in [c.raddr for c in process.net_connections("tcp")])
        until(lambda: ours not in [c.raddr for c in process.net_connections("tcp")])


@pytest.mark.slow
def test_a_connection_without_a_request_is_ended(hasty: Server) -> None:
    with closing(opened(hasty)) as connection:
        connection.settimeout(200)
        assert connection.recv(1) == b""


def test_a_request_in_pieces_is_answered_and_the_next_one_too(hasty: Server) -> None:
    whole = HEAD.replace(b"1000", b"%d" % len(ROW)) + b"\r\n" + ROW
    with closing(opened(hasty)) as connection:
        for _ in range(2):
            for start in range(0, len(whole), 40):
                connection.sendall(whole[start : start + 40])
            answer = b""
            while b'{"outputs"' not in answer or not answer.endswith(b"}"):
                answer += connection.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        pytest.param(1, 70_000, id="a large one"),
        pytest.param(1, 1_000_000, id="a huge one"),
        pytest.param(101, 1, id="many"),
        pytest.param(60, 2_000, id="large together"),
    ],
)
def test_a_head_that_is_too_large_is_a_431(server: Server, fields: int, size: int) -> None:
    head = HEAD.replace(b"1000", b"0") + b"".join(b"x-%d: %s\r\n" % (i, b"a" * size) for i in range(fields))
    with closing(opened(server)) as connection:
        with suppress(ConnectionError):
            connection.sendall(head + b"\r\n")
        answer = to_the_end(connection)
    assert b" 431 " in answer.partition(b"\r\n")[0] or size > 500_000
    assert server.ask("GET", "/ping").status == 200


def test_a_head_that_never_ends_is_a_431(server: Server) -> None:
    with closing(opened(server)) as connection:
        connection.sendall(HEAD)
        assert b" 431 " in to_the_end(connection, b"x-more: 1\r\n" * 1000)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GARBAGE\r\n\r\n", id="no HTTP"),
        pytest.param(b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: x\r\n\r\n", id="no length"),
    ],
)
def test_what_is_not_http_is_a_400_as_any_other(server: Server, sent: bytes) -> None:
    with closing(opened(server)) as connection:
        connection.sendall(sent)
        head, _, body = to_the_end(connection).partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    assert list(json.loads(body)) == ["error" if b"/v2/" in sent else "detail"]


def test_several_requests_at_once_are_all_answered(server: Server) -> None:
    whole = HEAD.replace(b"1000", b"%d" % len(ROW)) + b"\r\n" + ROW
    with closing(opened(server)) as connection:
        connection.sendall(whole * 2 + whole.replace(b"Host", b"Connection: close\r\nHost"))
        assert to_the_end(connection).count(b" 200 OK\r\n") == 3


def test_a_head_within_the_limits_is_taken(server: Server) -> None:
    fields = {f"x-{i}": "a" * 600 for i in range(90)}
    assert server.predict(json.loads(ROW), headers=fields).status == 200
