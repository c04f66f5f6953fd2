"""The fault proxy passes everything on unchanged, and breaks exactly what it was told to."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploy_runner.local.servers import dry_run
from tests.faults.proxy import Fault, FaultProxy


class Echo(BaseHTTPRequestHandler):
    """Answers with the body's SHA-256 and the Host; `seen` counts what has arrived whole."""

    protocol_version = "HTTP/1.1"
    seen: list[str] = []  # noqa: RUF012

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_POST(self) -> None:
        digest, left = hashlib.sha256(), 0
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                digest.update(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
        while left:
            data = self.rfile.read(min(left, 1 << 20))
            if not data:
                return
            digest.update(data)
            left -= len(data)
        type(self).seen.append(self.path)
        body = f"{digest.hexdigest()} {self.headers['Host']}".encode()
        self.send_response(200)
        if "chunked" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"".join(b"%x\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body))))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST  # noqa: N815


@pytest.fixture
def echo() -> Iterator[str]:
    Echo.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def ask(proxy: FaultProxy, method: str = "POST", path: str = "/x", body: Any = b"", **headers: str) -> Any:
    with connected(proxy) as connection:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        with connection.getresponse() as answer:
            return answer.status, answer.read(), dict(answer.headers)


def connected(proxy: FaultProxy, timeout_s: float = 30) -> closing[HTTPConnection]:
    return closing(HTTPConnection("127.0.0.1", urlsplit(proxy.url).port or 0, timeout=timeout_s))


def test_bodies_of_every_framing_pass_through_unchanged(echo: str) -> None:
    data = os.urandom(3_000_000)
    with FaultProxy(echo) as proxy:
        host = proxy.url.removeprefix("http://")
        expected = f"{hashlib.sha256(data).hexdigest()} {host}".encode()
        assert ask(proxy, body=data)[:2] == (200, expected)
        pieces = iter([data[:7], data[7:]])
        assert ask(proxy, path="/chunked?a=b", body=pieces)[:2] == (200, expected)
        assert ask(proxy, method="HEAD")[:2] == (200, b"")
        assert [(r.method, r.path, r.status, r.fault) for r in proxy.requests] == [
            ("POST", "/x", 200, None), ("POST", "/chunked?a=b", 200, None), ("HEAD", "/x", 200, None),
        ]  # fmt: skip
        assert proxy.requests[0].bytes_in == len(data)


def test_one_connection_carries_many_requests(echo: str) -> None:
    with FaultProxy(echo, [Fault(503, nth=2)]) as proxy, connected(proxy) as connection:
        statuses = []
        for _ in range(3):
            connection.request("POST", "/x", b"abc")
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        assert statuses == [200, 503, 200]


def test_a_client_that_waits_for_100_continue_gets_it(echo: str) -> None:
    with FaultProxy(echo, [Fault(503, nth=2)]) as proxy:
        for expected in (b"HTTP/1.1 100 Continue", b"HTTP/1.1 503 Service Unavailable"):
            with socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port or 0)) as client:
                client.sendall(
                    b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
                )
                file = client.makefile("rb")
                assert file.readline().strip() == expected
                if b"100" in expected:
                    file.readline()
                    client.sendall(b"abc")
                    assert file.readline().strip() == b"HTTP/1.1 200 OK"
        assert Echo.seen == ["/x"]


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        pytest.param("reset", [], id="reset"),
        pytest.param("partial", [], id="partial"),
        pytest.param("commit_then_reset", ["/x"], id="commit_then_reset"),
    ],
)
def test_a_reset_is_one_to_the_client_and_upstream_has_what_it_says(
    echo: str, fault: Any, seen: list[str]
) -> None:
    with FaultProxy(echo, [Fault(fault)]) as proxy:
        with pytest.raises(ConnectionResetError, match="Connection reset by peer"):
            ask(proxy, body=b"x" * 1_000_000)
        assert Echo.seen == seen
        (request,) = proxy.requests
        assert (request.status, request.fault) == (None, fault)
        assert request.upstream_status == (200 if seen else None)
        assert ask(proxy)[0] == 200


def test_a_status_is_answered_without_upstream(echo: str) -> None:
    faults = [Fault(429, headers=(("Retry-After", "3"),), body=b"slower"), Fault(412), Fault(409)]
    with FaultProxy(echo, faults) as proxy:
        status, body, headers = ask(proxy, body=b"abc")
        assert (status, body, headers["Retry-After"]) == (429, b"slower", "3")
        assert Echo.seen == []
        assert ask(proxy)[0] == 200  # The others have counted the first request as theirs.


def test_a_duplicate_reaches_upstream_twice_and_is_answered_once(echo: str) -> None:
    with FaultProxy(echo, [Fault("duplicate")]) as proxy:
        assert ask(proxy, body=b"abc")[:2] == (200, ask(proxy, body=b"abc")[1])
        assert Echo.seen == ["/x", "/x", "/x"]


def test_an_answer_is_cut_in_its_middle(echo: str) -> None:
    with (
        FaultProxy(echo, [Fault("truncated")]) as proxy,
        pytest.raises(IncompleteRead, match="more expected"),
    ):
        ask(proxy)


def test_a_slow_answer_comes_after_upstream_has_acted(echo: str) -> None:
    with FaultProxy(echo, [Fault("slow", delay_s=60)]) as proxy, connected(proxy, 0.3) as connection:
        connection.request("POST", "/x", b"abc")
        with pytest.raises(TimeoutError, match="timed out"):
            connection.getresponse()
        assert Echo.seen == ["/x"]


def test_a_stalled_request_is_never_answered_and_upstream_sees_nothing(echo: str) -> None:
    with FaultProxy(echo, [Fault("stall")]) as proxy, connected(proxy, 0.3) as connection:
        connection.request("POST", "/x", b"abc")
        with pytest.raises(TimeoutError, match="timed out"):
            connection.getresponse()
        assert Echo.seen == []
        assert ask(proxy)[0] == 200


def test_an_answer_hangs_in_its_middle(echo: str) -> None:
    with FaultProxy(echo, [Fault("hang")]) as proxy, connected(proxy, 0.3) as connection:
        connection.request("POST", "/x", b"abc")
        answer = connection.getresponse()
        assert len(answer.read1()) == int(answer.headers["Content-Length"]) // 2
        with pytest.raises(TimeoutError, match="timed out"):
            answer.read()


def test_a_lie_has_the_body_and_the_headers_that_it_was_given(echo: str) -> None:
    faults = [
        Fault("lie", alter=lambda body: body[::-1]),
        Fault("lie", nth=2, alter=lambda body: b"", headers=(("Content-Length", "7"), ("ETag", '"x"'))),
    ]
    with FaultProxy(echo, faults) as proxy:
        right = f"{hashlib.sha256(b'abc').hexdigest()} {proxy.url.removeprefix('http://')}".encode()
        assert ask(proxy, body=b"abc")[:2] == (200, right[::-1])
        with pytest.raises(IncompleteRead, match="7 more expected"):
            ask(proxy)
        assert ask(proxy, body=b"abc")[:2] == (200, right)


def test_a_throttled_body_arrives_whole(echo: str) -> None:
    data = os.urandom(600_000)
    with FaultProxy(echo, [Fault("throttled", bytes_per_s=6_000_000)]) as proxy:
        started_s = time.monotonic()
        assert ask(proxy, body=data)[1].startswith(hashlib.sha256(data).hexdigest().encode())
        assert time.monotonic() - started_s > 0.1


def test_a_fault_counts_the_requests_that_match_it(echo: str) -> None:
    with FaultProxy(echo, [Fault(503, "PUT", r"/a\?", nth=2, times=2)]) as proxy:
        found = [ask(proxy, m, p)[0] for m in ("PUT", "POST") for p in ("/a?1", "/b", "/a?2", "/a?3", "/a?4")]
        assert found == [200, 200, 503, 503, 200, 200, 200, 200, 200, 200]
        assert proxy.injected == [503, 503]


def test_an_observer_sees_each_moment_of_a_request(echo: str) -> None:
    moments: list[tuple[str, int]] = []
    with FaultProxy(echo, observe=lambda moment, r: moments.append((moment, len(Echo.seen)))) as proxy:
        ask(proxy, body=b"x" * 1_000_000)
    assert moments == [("received", 0), ("half", 0), ("answered", 1)]


@pytest.mark.slow
def test_a_gigabyte_passes_in_bounded_memory(echo: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    piece = bytes(1 << 20)
    with FaultProxy(echo) as proxy:
        size = 1 << 30
        assert ask(proxy, body=iter([piece] * 1024), Content_Length=str(size))[0] == 200
        assert proxy.requests[0].bytes_in == size
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 64 * 1024  # KiB.


def test_botocore_signs_and_puts_through_it(tmp_path: Path) -> None:
    import boto3
    from botocore.config import Config

    with dry_run(tmp_path / "servers", services=("aws",), log=lambda line: None) as env:
        faults = [Fault("commit_then_reset", "PUT", "/bucket/key", times=1)]
        with FaultProxy(env["AWS_ENDPOINT_URL"], faults) as proxy:
            s3 = boto3.client(
                "s3", endpoint_url=proxy.url, region_name="us-east-1", aws_access_key_id="a",
                aws_secret_access_key="b", config=Config(retries={"total_max_attempts": 3}),
            )  # fmt: skip
            s3.create_bucket(Bucket="bucket")
            s3.put_object(Bucket="bucket", Key="key", Body=b"data" * 1000, ChecksumAlgorithm="SHA256")
            assert s3.get_object(Bucket="bucket", Key="key")["Body"].read() == b"data" * 1000
            sent = [(r.method, r.fault) for r in proxy.requests if r.path.startswith("/bucket/key")]
            assert sent == [("PUT", "commit_then_reset"), ("PUT", None), ("GET", None)]
            put = next(r for r in proxy.requests if r.method == "PUT" and r.path == "/bucket/key")
            assert put.headers["expect"] == "100-continue"
