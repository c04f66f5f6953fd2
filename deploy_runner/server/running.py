"""Load, listen, serve, drain: the life of the server's process, and of its workers."""

from __future__ import annotations

import json
import os
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from .artifact import fingerprint
from .board import Board
from .log import Log
from .model import Model, load
from .options import Settings
from .problems import UnfitArtifact
from .service import Service, cores, settle
from .workers import Workers

__all__ = ["run"]

_BACKLOG = 2048
_Serve = Callable[[Service, Model, socket.socket, Callable[[], None]], int]


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, and what then runs is answered; a second signal ends at once."""
    serve: _Serve
    if settings.server == "flask":
        from .wsgi import serve
    else:
        from .uvicorn_server import serve
    warnings.filterwarnings("ignore", "overflow encountered in dot", RuntimeWarning)  # It is looked at.
    model = load(settings, cores())
    listeners = _listen(settings, model.workers)
    if model.workers == 1:
        service = Service(settings, Log(as_json=settings.json))
        return serve(service, model, listeners[0], lambda: _announce(settings, model, listeners[0]))
    with model.scratch:
        crew = _Crew(settings, model, serve)
        workers = Workers(listeners, crew.work, Log(as_json=settings.json))
        settle()
        return workers.run(lambda: _announce(settings, model, listeners[0]))


class _Crew:
    """What each worker does."""

    def __init__(self, settings: Settings, model: Model, serve: _Serve) -> None:
        self._settings, self._model, self._serve = settings, model, serve
        self._board = Board(model.workers)

    def work(self, worker: int, listener: socket.socket, ready: Callable[[], None]) -> int:
        """Serve the model that was forked, or what has come in its place since."""
        log = Log(as_json=self._settings.json, worker=worker)
        model = self._model
        if model.threads > 1 or fingerprint(Path(self._settings.artifact)) != model.fingerprint:
            try:
                model = load(self._settings, cores(), model.workers)
            except UnfitArtifact as error:
                log("worker rejected", error=str(error))
                return 2
        else:
            model = replace(model, scratch=ExitStack())
        service = Service(self._settings, log, self._board, worker)

        def answering() -> None:
            settle(forked=True)
            ready()

        return self._serve(service, model, listener, answering)


def _listen(settings: Settings, count: int) -> list[socket.socket]:
    """Return the sockets that the workers listen on, all on one port. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    alone = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    if count == 1:
        return [alone]
    port = alone.getsockname()[1]  # Nobody else has it, who would share it otherwise.
    alone.close()
    return [
        socket.create_server((settings.host, port), family=family, backlog=_BACKLOG, reuse_port=True)
        for _ in range(count)
    ]


def _announce(settings: Settings, model: Model, listener: socket.socket) -> None:
    """Print the address and the model, as one line: requests are answered from now on."""
    if model.workers == 1:
        settle()
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    name, digest = settings.name or "model", model.artifact.digest
    if settings.json:
        line = json.dumps({"url": url, "name": name, "digest": digest, "pid": os.getpid()})
    else:
        line = f"serving {name} {model.artifact.version} at {url}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
