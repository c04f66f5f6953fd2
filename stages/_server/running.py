"""Load, listen, serve, drain: the life of the server's process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from types import FrameType

import uvicorn

from .asgi import App
from .log import Log
from .model import Model, load
from .options import Settings
from .service import Service, cores

__all__ = ["announce", "listen", "run"]

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_FORCED = 130


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT and what then runs is answered; a second signal ends at once."""
    log = Log(as_json=settings.json)
    model = load(settings, cores())
    listener = listen(settings)
    if settings.server == "flask":
        from .wsgi import serve

        return serve(settings, model, listener, log)
    service = Service(settings, log)
    config = uvicorn.Config(
        App(service), loop="uvloop", http="httptools", ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )  # fmt: skip
    server = _Server(config, service, model)
    server.run(sockets=[listener])
    return 0


def listen(settings: Settings) -> socket.socket:
    """Return the socket that the server listens on. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)


def announce(settings: Settings, service: Service, listener: socket.socket) -> None:
    """Print the address and the model, as one line: requests are answered from now on."""
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    digest = service.live.model.artifact.digest
    if settings.json:
        line = json.dumps({"url": url, "name": service.name, "digest": digest, "pid": os.getpid()})
    else:
        line = f"serving {service.name} {service.live.version} at {url}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class _Server(uvicorn.Server):
    """uvicorn, which on SIGTERM first says that it isn't ready, then drains, then ends with 0."""

    def __init__(self, config: uvicorn.Config, service: Service, model: Model) -> None:
        super().__init__(config)
        self._service, self._model = service, model

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.start(self._model)
        del self._model
        await super().startup(sockets)
        assert sockets is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._service.reload_soon)
        announce(self._service.settings, self._service, sockets[0])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            os._exit(_FORCED)
        self._service.draining = True
        self._service.log("draining", signal=signal.Signals(sig).name)
        asyncio.get_event_loop().call_later(self._service.settings.lame_duck_s, self._end)

    def _end(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await self._service.stop()
        self._service.log("stopped")
