"""uvicorn, which on SIGTERM first says that it isn't ready, then drains, then ends with 0."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from .arriving import IDLE_S
from .asgi import App
from .connections import Connection
from .model import Model
from .service import Service

__all__ = ["serve"]

_LOOK_TICKS = 5
"""Of uvicorn's ticks, of which there are ten a second."""


def serve(service: Service, model: Model, listener: socket.socket, ready: Callable[[], None]) -> int:
    """Serve the FastAPI app until it has drained; call `ready` when requests are answered."""
    config = uvicorn.Config(
        App(service), loop="uvloop", http=Connection, ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=max(1, round(service.settings.drain_s)),
    )  # fmt: skip
    _Server(config, service, model, ready).run(sockets=[listener])
    return 0


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, service: Service, model: Model, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service, self._model, self._ready = service, model, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.start(self._model)
        del self._model
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._service.reload_soon)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        if counter % _LOOK_TICKS == 0:
            now_s, timeout_s = asyncio.get_running_loop().time(), self._service.settings.timeout_s
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.end_if_late(now_s, timeout_s)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.drain(sig, self._end)

    def _end(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):  # Whose request has outlasted `drain_s`.
            connection.transport.abort()
        await self._service.stop()
        self._service.log("stopped")
