"""POSTs of tensors that came whole, from the connection's bytes to its bytes, without a task or a future.

What a request costs is mostly what stands between the socket and the model: here it is read by the
parser's callback, put into the batch, and written when that is answered. Whatever is unusual about a
request goes the way of all others, through the ASGI app: raw input, a packed body, one in chunks or
larger than `MOST_BYTES`, a second request before the first is answered, a client that doesn't read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from .batching import Entry
from .ports import Arrays
from .problems import Refused
from .protocol import HEADER_LENGTH
from .routes import INFER_ROUTE, TENSORS, Ask, Reply, Request, told
from .service import Live, Service

__all__ = ["CLIENT_GONE", "MOST_BYTES", "READ", "Exchange", "Posts", "head"]

MOST_BYTES = 64 << 10
"""uvicorn's connections stop to read beyond it until the app has taken what came."""
READ = {
    name.encode(): name
    for name in ("content-type", "content-length", "content-encoding", "accept", HEADER_LENGTH)
}
CLIENT_GONE = 499
_FAILED = Reply(500, b"Internal Server Error", "text/plain; charset=utf-8")
_log = logging.getLogger("uvicorn.error")


class Posts:
    """What is answered directly, by the request's target as it was sent."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._most = min(MOST_BYTES, service.settings.max_body)
        infer = f"/v2/models/{service.name}/infer"
        self._by_target: Mapping[bytes, tuple[str, str, Ask]] = {
            quote(path).encode(): (path, route, ask)
            for route, ask in TENSORS.items()
            for path in [infer if route == INFER_ROUTE else route]
        }

    def exchange(self, target: bytes, headers: list[tuple[bytes, bytes]]) -> Exchange | None:
        """Return the exchange that a POST begins, or None where it goes the other way."""
        found = self._by_target.get(target)
        if found is None or self.service.live.io is not None:
            return None
        read = {READ[name]: value.decode("latin-1") for name, value in headers if name in READ}
        length = read.get("content-length", "")
        whole = length.isdecimal() and 0 < int(length) <= self._most
        return Exchange(self.service, *found, read) if whole and "content-encoding" not in read else None


class _NoEvent:
    def set(self) -> None: ...


class Exchange:
    """A request and its answer; it stands where uvicorn's connections have their RequestResponseCycle.

    `send` is given the reply, and is let go of then.
    """

    __slots__ = (
        "_ask", "_entry", "_headers", "_live", "_route", "_service", "_started_s", "_write", "body",
        "disconnected", "keep_alive", "more_body", "path", "response_complete", "response_started",
        "scope", "send",
    )  # fmt: skip
    message_event = _NoEvent()

    def __init__(self, service: Service, path: str, route: str, ask: Ask, headers: Mapping[str, str]) -> None:
        self._service, self.path, self._route, self._ask, self._headers = service, path, route, ask, headers
        self._started_s = 0.0
        self._entry: Entry | None = None
        self._write: Callable[[Arrays], Reply] | None = None
        self._live: Live | None = None
        self.scope: Any = None
        self.send: Callable[[Exchange, Reply], None] | None = None
        self.body, self.more_body = b"", True
        self.keep_alive = True
        self.disconnected = self.response_started = self.response_complete = False

    def ask(self) -> None:
        """Queue what the body asks for, now that it is all there; a wrong one is refused at once."""
        if self.send is None:
            return
        self.more_body = False
        self._started_s = time.perf_counter()
        service, self._live = self._service, self._service.live
        try:
            asked = self._ask(service, self._live, Request(self.body, self._headers, _unwatched))
            self._write = asked.write
            self._entry = service.submit(self._live, asked.arrays, self._tell)
        except Exception as error:
            self._end(self._refused(error))

    def _tell(self, answer: Arrays | BaseException) -> None:
        write, self._write, self._entry = self._write, None, None
        if write is None or isinstance(answer, BaseException):
            self._end(self._refused(answer))
            return
        try:
            reply = write(answer)
        except Exception as error:
            reply = self._refused(error)
        self._end(reply)

    def _refused(self, error: object) -> Reply:
        if isinstance(error, Refused):
            return told(self._service, self._route, error)
        _log.error("Exception in a request\n", exc_info=error if isinstance(error, BaseException) else None)
        self.keep_alive = False
        return _FAILED

    def _end(self, reply: Reply) -> None:
        self._count(reply.status)
        send, self.send = self.send, None
        if send is not None:
            send(self, reply)

    def abandon(self, status: int = CLIENT_GONE) -> None:
        """Take the request out of the queue, which can't be answered any more."""
        if self.send is None:
            return
        self.send = None
        entry, self._entry, self._write = self._entry, None, None
        if entry is not None and self._live is not None:
            self._live.batcher.drop(entry)
        self._count(status)

    def _count(self, status: int) -> None:
        seconds = time.perf_counter() - self._started_s if self._started_s else 0.0
        self._service.metrics.request(self._route, status, seconds)
        if self._service.settings.access_log:
            ms = round(seconds * 1e3, 3)
            self._service.log("request", method="POST", path=self.path, status=status, ms=ms)


def _unwatched(entry: Entry) -> None:
    """Do nothing: the connection itself says when its client goes."""


def head(reply: Reply, known: bytes, *, close: bool) -> bytes:
    """Return a reply's status line and headers; `known` are those that all replies have."""
    more = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in reply.headers.items())
    return b"%s%scontent-type: %s\r\ncontent-length: %d\r\n%s%s\r\n" % (
        _STATUS[reply.status], known, reply.content_type.encode("latin-1"), len(reply.body), more,
        b"connection: close\r\n" if close else b"",
    )  # fmt: skip


_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
