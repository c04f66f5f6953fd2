"""Listen on the loopback and serve the page until a signal."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from ..errors import UsageError
from .app import build_app
from .guard import Guard
from .site import Site

__all__ = ["serve"]

_HOST = "127.0.0.1"


def serve(site: Site, port: int, announce: Callable[[str], None]) -> int:
    """Serve the pages of a site; `announce` is told the address, token included.

    Raises UsageError where the port can't be used.
    """
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)  # What fails is said on the page.
    listener = _listen(port)
    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(32)
    config = uvicorn.Config(
        Guard(build_app(site), token, port), ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = _Server(config, site)
    site.warm()
    announce(f"http://{_HOST}:{port}/?token={token}")
    try:
        server.run(sockets=[listener])
    finally:
        site.close()
    return 0


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((_HOST, port))
    except OSError as error:
        said = os.strerror(error.errno) if error.errno else str(error)
        free = error.errno in (errno.EADDRINUSE, errno.EACCES)
        fix = "--port 0 takes a free port" if free else ""
        raise UsageError(f"{_HOST}:{port}: {said}", fix=fix) from error


class _Server(uvicorn.Server):
    """Ends at the first signal, also where somebody follows a run."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self._site.closing = True
