"""The FastAPI app, served by uvicorn.

The routes that carry inferences are answered before FastAPI's router sees them: at 64 clients, routing
and validation by models would take more time than a small model does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request as FastRequest

from . import arriving, routes
from .batching import Entry
from .connections import OVERDUE
from .direct import CLIENT_GONE, READ, Posts
from .openapi import openapi
from .problems import Refused
from .routes import Reply, Request
from .service import Service

__all__ = ["App"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_DRAINED = 2
"""Of a body without a length so many times its limit is read, so that the client can read the refusal."""


class App:
    """An ASGI app: POSTs of inferences here, everything else by FastAPI."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._max_body = service.settings.max_body
        self._access_log = service.settings.access_log
        self._posts = dict(routes.POSTS)
        self.posts = Posts(service)
        """What connections answer themselves."""
        self._fastapi = _fastapi(service)

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._fastapi(scope, receive, send)
            return
        started_s = time.perf_counter()
        if (found := self._found(scope["path"])) is not None:
            if scope["method"] == "POST":
                status = await self._post(*found, scope, receive, send)
            else:
                status = await self._send(routes.no_route(405, scope["path"], "POST"), send, close=False)
        else:
            status = await self._other(scope, receive, send)
        if self._access_log:
            ms = round((time.perf_counter() - started_s) * 1e3, 3)
            self._service.log("request", method=scope["method"], path=scope["path"], status=status, ms=ms)

    def _found(self, path: str) -> tuple[str, Any] | None:
        if path in self._posts:
            return path, self._posts[path]
        if path.startswith("/v2/models/") and path.endswith("/infer"):
            return routes.INFER_ROUTE, path[len("/v2/models/") : -len("/infer")]
        return None

    async def _post(self, route: str, post: Any, scope: _Scope, receive: _Receive, send: _Send) -> int:
        if isinstance(post, str):
            name, _, version = post.partition("/versions/")
            missing = routes.unknown_model(self._service, name, version)
            if missing is not None:
                self._service.metrics.request(route, missing.status, 0.0)
                return await self._send(missing, send, close=True)
            post = routes.INFER
        headers = {READ[n]: value.decode("latin-1") for n, value in scope["headers"] if n in READ}
        try:
            body = await self._body(headers, receive)
        except Refused as refused:
            self._service.metrics.request(route, refused.status, 0.0)
            refusal = routes.refusal(refused, protocol_v2=post is routes.INFER)
            return await self._send(refusal, send, close=True)
        if body is None:
            late = scope.get(OVERDUE)
            status: int = CLIENT_GONE if late is None else late.status
            self._service.metrics.request(route, status, 0.0)
            return status
        watcher = _Watcher(receive)
        try:
            reply = await routes.answer(route, post, self._service, Request(body, headers, watcher.take))
        except asyncio.CancelledError:
            if not watcher.gone:
                raise
            self._service.metrics.request(route, CLIENT_GONE, 0.0)
            return CLIENT_GONE
        finally:
            watcher.stop()
        return await self._send(reply, send, close=self._service.draining)

    async def _body(self, headers: Mapping[str, str], receive: _Receive) -> bytes | None:
        """Return the body, or None where the client has gone. Raises Refused where it is too large."""
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body:
            raise arriving.too_large(self._max_body)
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message["body"]
        else:
            parts, size = [], 0
            while message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size <= self._max_body:
                    parts.append(message.get("body", b""))
                if not message.get("more_body") or size > _DRAINED * self._max_body:
                    break
                message = await receive()
            else:
                return None
            if size > self._max_body:
                raise arriving.too_large(self._max_body)
            body = b"".join(parts)
        if len(body) > self._max_body:
            raise arriving.too_large(self._max_body)
        return body

    async def _send(self, reply: Reply, send: _Send, *, close: bool) -> int:
        headers = [
            (b"content-type", reply.content_type.encode("latin-1")),
            (b"content-length", b"%d" % len(reply.body)),
        ]
        if reply.headers:
            headers += [(n.encode("latin-1"), v.encode("latin-1")) for n, v in reply.headers.items()]
        if close:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})
        return reply.status

    async def _other(self, scope: _Scope, receive: _Receive, send: _Send) -> int:
        started_s, seen = time.perf_counter(), [500]

        async def noting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                seen[0] = message["status"]
            await send(message)

        await self._fastapi(scope, receive, noting)
        route = getattr(scope.get("route"), "path", "other")
        self._service.metrics.request(route, seen[0], time.perf_counter() - started_s)
        return seen[0]


class _Watcher:
    """Drops a request from the queue when its client goes; costs nothing for those that wait shortly."""

    def __init__(self, receive: _Receive) -> None:
        self._receive = receive
        self._task: asyncio.Task[None] | None = None
        self.gone = False

    def take(self, entry: Entry) -> None:
        """Watch over this entry once it has waited for long."""
        entry.watch = self._start

    def _start(self, entry: Entry) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch(entry))

    async def _watch(self, entry: Entry) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and entry.tell is not None:
            self.gone = True
            entry.answer(asyncio.CancelledError())

    def stop(self) -> None:
        """End the watching."""
        task, self._task = self._task, None  # What a task was ended by holds its frame, and that holds this.
        if task is not None:
            task.cancel()


def _fastapi(service: Service) -> FastAPI:
    app = FastAPI(title=service.name, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.openapi = lambda: openapi(service)  # type: ignore[method-assign]
    for path, get in routes.GETS.items():
        endpoint = _endpoint(get, service)
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)

    @app.get("/v2/models/{name}", include_in_schema=False)
    @app.get("/v2/models/{name}/versions/{version}", include_in_schema=False)
    async def metadata(name: str, version: str = "") -> Response:
        found = routes.unknown_model(service, name, version) or routes.model_metadata(service)
        return _response(found)

    @app.get("/v2/models/{name}/ready", include_in_schema=False)
    @app.get("/v2/models/{name}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(name: str, version: str = "") -> Response:
        return _response(routes.unknown_model(service, name, version) or routes.model_ready(service))

    @app.exception_handler(HTTPException)
    async def no_route(request: FastRequest, error: HTTPException) -> Response:
        allow = (error.headers or {}).get("Allow", "")
        methods = ", ".join(sorted(allow.replace(",", " ").split()))
        return _response(routes.no_route(error.status_code, request.url.path, methods, error.detail))

    return app


def _endpoint(get: Callable[[Service], Reply], service: Service) -> Callable[[], Awaitable[Response]]:
    async def endpoint() -> Response:
        return _response(get(service))

    return endpoint


def _response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, dict(reply.headers), reply.content_type)
