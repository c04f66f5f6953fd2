"""The Flask app, served by waitress: the same routes and answers, one thread for each running request.

What WSGI can't do: a client that goes away is not noticed before its answer is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvloop
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from . import routes
from .codecs import to_json
from .model import Model
from .openapi import openapi
from .problems import Problem, Refused
from .routes import Reply, Request
from .service import Service
from .waitress_server import Server

__all__ = ["flask_app", "serve"]

_LOOK_S = 0.02


class _Draining(Refused):
    status = 503
    retry_after_s = 1


def flask_app(service: Service, loop: asyncio.AbstractEventLoop) -> Flask:
    """Return the app; inferences go through the service's own event loop, in another thread."""
    app = Flask("serve", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False

    def post(route: str, function: Any) -> Response:
        if service.draining and not service.lame:
            ending = _Draining(Problem(("server",), "the server is shutting down"))
            return _response(routes.refusal(ending, protocol_v2=function is routes.INFER))
        headers = {name.lower(): value for name, value in request.headers.items()}
        given = Request(request.get_data(), headers, lambda entry: None)
        return _response(
            asyncio.run_coroutine_threadsafe(routes.answer(route, function, service, given), loop).result()
        )

    def infer(name: str, version: str = "") -> Response:
        missing = routes.unknown_model(service, name, version)
        return _response(missing) if missing else post(routes.INFER_ROUTE, routes.INFER)

    def model(name: str, version: str = "") -> Response:
        return _response(routes.unknown_model(service, name, version) or routes.model_metadata(service))

    def ready(name: str, version: str = "") -> Response:
        return _response(routes.unknown_model(service, name, version) or routes.model_ready(service))

    def no_route(error: HTTPException) -> Response:
        allow = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        said = error.description or error.name
        return _response(routes.no_route(error.code or 500, request.path, allow, said))

    app.register_error_handler(HTTPException, no_route)
    for path, get in routes.GETS.items():
        app.add_url_rule(path, f"get {path}", lambda get=get: _response(get(service)))
    for path, function in routes.POSTS.items():
        app.add_url_rule(path, f"post {path}", lambda p=path, f=function: post(p, f), methods=["POST"])
    for place in ("/v2/models/<name>", "/v2/models/<name>/versions/<version>"):
        app.add_url_rule(place, f"model {place}", model)
        app.add_url_rule(f"{place}/ready", f"ready {place}", ready)
        app.add_url_rule(f"{place}/infer", f"infer {place}", infer, methods=["POST"])
    app.add_url_rule("/openapi.json", "openapi", lambda: _response(Reply(200, to_json(openapi(service)))))
    return app


def _response(reply: Reply) -> Response:
    response = Response(reply.body, reply.status, dict(reply.headers))
    response.content_type = reply.content_type
    return response


def serve(service: Service, model: Model, listener: socket.socket, ready: Callable[[], None]) -> int:
    """Serve the Flask app until it has drained; call `ready` when requests are answered."""
    return uvloop.run(_serve(service, model, listener, ready))


async def _serve(service: Service, model: Model, listener: socket.socket, ready: Callable[[], None]) -> int:
    loop = asyncio.get_running_loop()
    await service.start(model)

    def count(status: int) -> None:
        loop.call_soon_threadsafe(service.metrics.request, "other", status, 0.0)

    server = Server(flask_app(service, loop), listener, service.settings, count)
    threading.Thread(target=server.run, daemon=True).start()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.drain, number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, service.reload_soon)
    ready()
    await ended.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(service.settings.drain_s):
            while any(c.requests or c.total_outbufs_len for c in list(server.active_channels.values())):
                await asyncio.sleep(_LOOK_S)
    await service.stop()
    service.log("stopped")
    return 0
