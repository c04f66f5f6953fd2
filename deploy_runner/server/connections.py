"""uvicorn's connections, with limits: on a request's head, and on how long it may take to arrive.

uvicorn itself waits for as long as a client likes, and takes a head of any size. What a request costs here
is a comparison or two; how long it takes to arrive is looked at from time to time, for all connections.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from . import arriving
from .direct import Exchange, Posts, head
from .problems import Refused
from .routes import Reply

__all__ = ["OVERDUE", "Connection"]

OVERDUE = "deploy-runner.overdue"
"""In the scope of a request whose body was late."""
_UNFINISHED = 4
"""A head that isn't all there may have so many times HEAD_BYTES: its first bytes came with others."""


class Connection(HttpToolsProtocol):
    """One connection; `end_if_late` is called from time to time."""

    _head_bytes = 0
    _arrives: Any = None
    _since_s = 0.0
    _known: tuple[object, bytes] = (None, b"")

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        app: Any = self.app
        self._posts: Posts = app.posts
        self._idle: object = self

    def data_received(self, data: bytes) -> None:
        """Take bytes, and refuse a head that is too large."""
        super().data_received(data)
        if self.scope is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        large = self._head_bytes > arriving.HEAD_BYTES and self._is_large()
        if large or len(self.headers) > arriving.HEAD_FIELDS:
            self._refuse(arriving.head_too_large())
        elif self._has_head():
            self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Begin an exchange where the request is one of tensors, else what uvicorn begins."""
        if self.transport.is_closing():
            return
        exchange = self._exchange()
        if exchange is None:
            super().on_headers_complete()
            return
        exchange.scope, exchange.send = self.scope, self._send
        self.scope["path"] = exchange.path
        exchange.keep_alive = self.parser.should_keep_alive()
        self.cycle = exchange  # type: ignore[assignment]

    def _exchange(self) -> Exchange | None:
        parser, before = self.parser, self.cycle
        usual = (
            (before is None or before.response_complete)
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and not (self.expect_100_continue or self.flow.write_paused or parser.should_upgrade())
        )
        return self._posts.exchange(self.url, self.headers) if usual else None

    def on_message_complete(self) -> None:
        """Answer what is all there."""
        cycle: Any = self.cycle
        if type(cycle) is Exchange:
            cycle.ask()
        else:
            super().on_message_complete()

    def _send(self, exchange: Exchange, reply: Reply) -> None:
        exchange.response_started = exchange.response_complete = True
        close = not exchange.keep_alive or self._posts.service.draining
        if self._known[0] is not self.server_state.default_headers:
            headers = self.server_state.default_headers
            self._known = headers, b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(head(reply, self._known[1], close=close) + reply.body)
        if close:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Begin the next request; `end_if_late` ends a connection that has none."""
        self.server_state.total_requests += 1
        self._idle = object()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the request that waits: its client has gone."""
        super().connection_lost(exc)
        cycle: Any = self.cycle
        if type(cycle) is Exchange:
            cycle.abandon()

    def send_400_response(self, msg: str) -> None:
        """Refuse what isn't HTTP as everything else is refused."""
        self._refuse(arriving.unreadable(msg))

    def _has_head(self) -> bool:
        return self.scope is not None and self.cycle is not None and self.cycle.scope is self.scope

    def _is_large(self) -> bool:
        if not self._has_head():
            return self._head_bytes > _UNFINISHED * arriving.HEAD_BYTES
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        return size > arriving.HEAD_BYTES

    def end_if_late(self, now_s: float, timeout_s: float) -> None:
        """End the connection where the same request has been arriving for `timeout_s`, or none for long.

        An answer that isn't read for `timeout_s` ends it, too.
        """
        arrives = self._arriving()
        if arrives is not self._arrives:
            self._arrives, self._since_s = arrives, now_s
        elif arrives is self._idle and now_s - self._since_s >= arriving.IDLE_S:
            self.transport.close()
        elif arrives is self.flow and now_s - self._since_s >= timeout_s:
            self.transport.abort()
        elif arrives not in (None, self._idle) and now_s - self._since_s >= timeout_s:
            self._refuse(arriving.late(timeout_s))

    def _arriving(self) -> object:
        """Return what stands for the request that isn't all there, or for there being none; else None.

        Before the first there is none. It is the flow while an answer waits to be read.

        While reading is paused, since another request is being answered, its time doesn't run.
        """
        if self.scope is None:
            return self._idle
        if self.flow.write_paused:
            return self.flow
        if self.flow.read_paused:
            return None
        if not self._has_head():
            return self.scope
        if self.cycle.response_complete:
            return self._idle
        return self.cycle if self.cycle.more_body else None

    def _refuse(self, why: Refused) -> None:
        """Answer, unless an earlier answer is on its way, and close."""
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        ours = self._has_head()
        if (ours and answering and not cycle.response_started) or not (ours or answering):
            known = "" if self.scope is None else self.scope.get("path", "") or self.url.decode("latin-1")
            self.transport.write(_message(why, known))
        if ours:
            scope: Any = cycle.scope
            scope[OVERDUE] = why
            cycle.disconnected = True
            cycle.message_event.set()
            if isinstance(cycle, Exchange):
                cycle.abandon(why.status)
        self.transport.close()


def _message(why: Refused, path: str) -> bytes:
    reply = arriving.refused(why, path)
    head = (
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\ncontent-type: {reply.content_type}\r\n"
        f"content-length: {len(reply.body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + reply.body
