"""waitress with limits on how long a request may take to arrive; its refusals are the app's."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask
from waitress.utilities import Error, RequestHeaderFieldsTooLarge

from . import arriving
from .options import Settings
from .problems import Problem, Refused

__all__ = ["Server"]

_THREADS = 64
_CONNECTIONS = 900
"""Of the 1024 files that a process may usually open."""
_LOOK_S = 1


class _Late(Error):  # type: ignore[misc]
    code = 408
    reason = "Request Timeout"


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if len(self.headers) > arriving.HEAD_FIELDS:
            self.error, self.completed = RequestHeaderFieldsTooLarge(""), True


class _Refusal(ErrorTask):  # type: ignore[misc]
    def execute(self) -> None:
        error = self.request.error
        settings = self.channel.server.settings
        path = getattr(self.request, "path", "")
        reply = arriving.refused(_refusal(error, settings), path)
        self.channel.server.count(error.code)
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", reply.content_type))
        self.set_close_on_finish()
        self.content_length = len(reply.body)
        self.write(reply.body)


def _refusal(error: Any, settings: Settings) -> Refused:
    if error.code == 408:
        return arriving.late(settings.timeout_s)
    if error.code == 413:
        return arriving.too_large(settings.max_body)
    if error.code == 431:
        return arriving.head_too_large()
    refused = Refused(Problem(("request",), str(error.body)))
    refused.status = error.code
    return refused


class _Channel(HTTPChannel):  # type: ignore[misc]
    error_task_class = _Refusal
    parser_class = _Parser
    request: Any
    begun_s = 0.0

    def received(self, data: bytes) -> bool:
        if self.request is None:
            self.begun_s = time.time()
        done: bool = super().received(data)
        return done

    def end_if_late(self, now_s: float, timeout_s: float) -> None:
        """Refuse the request that has been arriving for too long; while another runs, its time doesn't."""
        with self.requests_lock:
            if self.requests:
                self.begun_s = now_s
            if self.request is None or now_s - self.begun_s < timeout_s or self.will_close:
                return
            late, self.request = self.request, None
            late.error, late.completed = _Late(""), True
            self.requests.append(late)
            self.server.add_task(self)


class Server(TcpWSGIServer):  # type: ignore[misc]
    """Serves a WSGI app on a socket; `count` is told the status of what never reached the app."""

    channel_class = _Channel

    def __init__(
        self, app: Any, listener: socket.socket, settings: Settings, count: Callable[[int], object]
    ) -> None:
        self.settings, self.count = settings, count
        limits = Adjustments(
            sockets=[listener], threads=_THREADS, ident="", clear_untrusted_proxy_headers=True,
            connection_limit=_CONNECTIONS, asyncore_use_poll=True, cleanup_interval=_LOOK_S,
            channel_timeout=arriving.IDLE_S, max_request_header_size=arriving.HEAD_BYTES,
            max_request_body_size=settings.max_body + 1,
        )  # fmt: skip
        super().__init__(
            app, _sock=listener, adj=limits, bind_socket=False,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
        )  # fmt: skip

    def maintenance(self, now: float) -> None:
        """Close idle connections, and refuse what has been arriving for too long."""
        super().maintenance(now)
        for channel in list(self.active_channels.values()):
            channel.end_if_late(now, self.settings.timeout_s)
