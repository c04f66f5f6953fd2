"""A proxy on loopback that breaks HTTP requests as networks and overloaded servers do.

    with FaultProxy(hub.url, [Fault(503, "POST", "/commit/"), Fault("commit_then_reset", "PUT", nth=2)]) as proxy:
        HfApi(endpoint=proxy.url).create_commit(…)
    assert [request.fault for request in proxy.requests if request.fault] == [503, "commit_then_reset"]

Bodies are streamed in both directions, so memory doesn't grow with them. The `Host` header is passed on
as the client has sent it: signatures stay valid, and a server that makes its links from it sends the
client through the proxy again.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

from tests.faults.wire import Rows, Wire, encode, framing_of, head_of, named, reset

__all__ = ["Fault", "FaultProxy", "Kind", "Request"]

Kind = (
    int
    | Literal[
        "reset", "partial", "commit_then_reset", "truncated", "slow", "stall", "hang", "throttled", "lie"
    ]
)
"""A status is answered by the proxy alone. `reset` comes before upstream has seen anything, `partial`
when it has half of the body; `commit_then_reset` when it has answered; `truncated` in the middle of its
answer's body; `slow` delays the answer. `stall` never answers, `hang` stops in the middle of the answer's
body, both with the connection open; `throttled` passes bodies on at a pace; `lie` alters the answer."""

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with the `nth` request (from 1) that matches, and the `times - 1` after it.

    `method` matches the whole method, `path` any part of the path with its query, `target` the end of
    X-Amz-Target, which names the operation of AWS's JSON services: all as patterns.
    `headers` and `body` are those of a status; `delay_s` is that of `slow`, `bytes_per_s` of `throttled`.
    `after_bytes` of an answer's body pass before it is `truncated` or `hang`s.
    A `lie` is what `alter` makes of the answer's body, with `headers` in the place of its own.
    """

    kind: Kind
    method: str = ".*"
    path: str = ""
    target: str = ""
    nth: int = 1
    times: int = 1
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delay_s: float = 1.0
    bytes_per_s: float = 1 << 20
    after_bytes: int = 0
    alter: Callable[[bytes], bytes] = bytes

    def matches(self, request: Request) -> bool:
        """Say whether a request is one of those that this fault counts."""
        operation = request.headers.get("x-amz-target", "")
        return bool(
            re.fullmatch(self.method, request.method)
            and re.search(self.path, request.path)
            and re.search(f"{self.target}$", operation)
        )


@dataclass(slots=True)
class Request:
    """What was asked and answered. `status` is what the client got, None where that was nothing.

    `headers` are the client's, in small letters; `upstream_status` is what the server answered;
    `bytes_in` counts the body that came from the client; `time_s` is monotonic.
    """

    method: str
    path: str
    time_s: float
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    status: int | None = None
    upstream_status: int | None = None
    fault: Kind | None = None
    bytes_in: int = 0


Moment = Literal["received", "half", "answered"]
Observer = Callable[[Moment, Request], None]


class FaultProxy:
    """A proxy in threads of this process, in front of one `upstream` (`http://127.0.0.1:PORT`).

    `requests` lists what came, in the order of its coming. `observe` is called when a request's head is
    there, when half of its body has gone upstream, and when upstream has answered: before each next step.
    """

    def __init__(
        self, upstream: str, faults: Sequence[Fault] = (), *, observe: Observer = lambda moment, request: None
    ) -> None:
        split = urlsplit(upstream)
        assert split.hostname == "127.0.0.1", upstream
        self._upstream = (split.hostname, split.port or 80)
        self.faults = list(faults)
        self.requests: list[Request] = []
        self.observe = observe
        self.closed = threading.Event()
        self._seen: dict[int, int] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._clients: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """Return the address, without a slash at its end."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def disturb(self, faults: Sequence[Fault]) -> None:
        """Begin to count again, with these faults and no others."""
        with self._lock:
            self.faults, self._seen = list(faults), {}
            self.requests.clear()

    @property
    def injected(self) -> list[Kind]:
        """Return the faults that have happened, in order."""
        return [request.fault for request in self.requests if request.fault is not None]

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for client in self._clients:
                reset(client)

    def connect(self) -> Wire:
        """Return a new connection to upstream."""
        return Wire(socket.create_connection(self._upstream, timeout=_TIMEOUT_S))

    def note(self, request: Request) -> Fault | None:
        """Record a request; return what is to go wrong with it."""
        with self._lock:
            self.requests.append(request)
            due = None
            for index, fault in enumerate(self.faults):
                if not fault.matches(request):
                    continue
                seen = self._seen[index] = self._seen.get(index, 0) + 1
                if due is None and fault.nth <= seen < fault.nth + fault.times:
                    due = fault
            request.fault = due.kind if due else None
            return due

    def _accept(self) -> None:
        while not self.closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.settimeout(_TIMEOUT_S)
            with self._lock:
                self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        wire = Wire(client)
        try:
            while _Exchange(self, wire).run():
                pass
        except (OSError, ValueError, EOFError):
            reset(client)
        finally:
            with self._lock:
                self._clients.discard(client)
            client.close()


class _Exchange:
    """One request and its answer."""

    def __init__(self, proxy: FaultProxy, client: Wire) -> None:
        self._proxy = proxy
        self._client = client

    def run(self) -> bool:
        """Pass a request on, or break it; say whether the connection can be used again."""
        try:
            line, rows = head_of(self._client.until(b"\r\n\r\n"))
        except EOFError:
            return False
        method, path, _ = line.split(" ", 2)
        self._request = request = Request(method, path, time.monotonic(), named(rows))
        fault = self._proxy.note(request)
        self._proxy.observe("received", request)
        if request.fault == "reset":
            return self._cut()
        if request.fault == "stall":
            self._proxy.closed.wait()
            return self._cut()
        if fault is not None and isinstance(fault.kind, int):
            return self._refuse(fault.kind, fault)
        upstream = self._proxy.connect()
        try:
            return self._pass(upstream, line, rows, fault)
        finally:
            upstream.sock.close()

    def _pass(self, upstream: Wire, line: str, rows: Rows, fault: Fault | None) -> bool:
        # A connection upstream is for one request: nothing is left over for the next one.
        sent = [row for row in rows if row[0].lower() not in ("connection", "expect")]
        upstream.sock.sendall(encode(line, [*sent, ("Connection", "close")]))
        try:
            if not self._pump_request(upstream, fault):
                return self._cut()
        except (BrokenPipeError, ConnectionResetError):
            pass  # Upstream may have answered without reading everything.
        return self._pump_answer(upstream, fault)

    def _body(self) -> Iterator[bytes]:
        """Yield the request's body, which a client with `Expect` sends only when it is told to."""
        headers = self._request.headers
        if headers.get("expect", "").lower() == "100-continue":
            self._client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        for data in self._client.body(framing_of(headers, default=0)):
            self._request.bytes_in += len(data)
            yield data

    def _pump_request(self, upstream: Wire, fault: Fault | None) -> bool:
        """Send the body upstream; False where the fault cuts it."""
        size = int(self._request.headers.get("content-length") or 0)
        passed_half = False
        for data in self._body():
            if not passed_half and self._request.bytes_in * 2 >= size:
                passed_half = True
                if fault is not None and fault.kind == "partial":
                    upstream.sock.sendall(data[: max(1, len(data) // 2)])
                    return False
                self._proxy.observe("half", self._request)
            upstream.sock.sendall(data)
            self._keep_pace(fault, len(data))
        return fault is None or fault.kind != "partial"

    def _pump_answer(self, upstream: Wire, fault: Fault | None) -> bool:
        line, rows = head_of(upstream.until(b"\r\n\r\n"))
        while line.split(" ")[1].startswith("1"):
            line, rows = head_of(upstream.until(b"\r\n\r\n"))
        status = self._request.upstream_status = int(line.split(" ")[1])
        empty = self._request.method == "HEAD" or status in (204, 304)
        framing = 0 if empty else framing_of(named(rows), default="close")
        if fault is not None and fault.kind == "commit_then_reset":
            for _ in upstream.body(framing):
                pass
            return self._cut()
        self._proxy.observe("answered", self._request)
        if fault is not None and fault.kind == "slow":
            self._proxy.closed.wait(fault.delay_s)
        if fault is not None and fault.kind == "lie":
            return self._lie(line, rows, b"".join(upstream.body(framing)), fault)
        again = framing != "close"
        self._request.status = status
        kept = [row for row in rows if row[0].lower() != "connection"]
        kept.append(("Connection", "keep-alive" if again else "close"))
        self._client.sock.sendall(encode(line.replace("HTTP/1.0", "HTTP/1.1"), kept))
        if fault is not None and fault.kind in ("truncated", "hang"):
            self._truncate(upstream.body(framing), fault.after_bytes)
            if fault.kind == "hang":
                self._proxy.closed.wait()
            return False
        for data in upstream.body(framing):
            self._client.sock.sendall(data)
            self._keep_pace(fault, len(data))
        return again

    def _keep_pace(self, fault: Fault | None, sent_bytes: int) -> None:
        if fault is not None and fault.kind == "throttled":
            self._proxy.closed.wait(sent_bytes / fault.bytes_per_s)

    def _truncate(self, body: Iterator[bytes], after_bytes: int) -> None:
        """Send a part of an answer, then nothing more; its end is a clean close."""
        for data in body:
            if after_bytes < len(data):
                self._client.sock.sendall(data[: len(data) // 2])
                return
            self._client.sock.sendall(data)
            after_bytes -= len(data)

    def _lie(self, line: str, rows: Rows, body: bytes, fault: Fault) -> bool:
        """Answer with another body, or other headers, than upstream did; then the connection ends."""
        self._request.status = int(line.split(" ")[1])
        told = fault.alter(body)
        given = {"Content-Length": str(len(told)), **dict(fault.headers), "Connection": "close"}
        replaced = {name.lower() for name in given} | {"transfer-encoding"}
        kept = [row for row in rows if row[0].lower() not in replaced]
        if self._request.method == "HEAD" and "Content-Length" not in dict(fault.headers):
            given["Content-Length"] = named(rows).get("content-length", "0")
        head = encode(line.replace("HTTP/1.0", "HTTP/1.1"), [*kept, *given.items()])
        self._client.sock.sendall(head + (b"" if self._request.method == "HEAD" else told))
        return False

    def _refuse(self, status: int, fault: Fault) -> bool:
        """Answer with a status. A body that is on its way is read; one that is asked for is not."""
        waits = "expect" in self._request.headers
        if not waits:
            for _ in self._body():
                pass
        self._request.status = status
        rows = [("Content-Length", str(len(fault.body))), *fault.headers]
        rows.append(("Connection", "close" if waits else "keep-alive"))
        body = b"" if self._request.method == "HEAD" else fault.body
        self._client.sock.sendall(encode(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", rows) + body)
        return not waits

    def _cut(self) -> bool:
        reset(self._client.sock)
        return False
