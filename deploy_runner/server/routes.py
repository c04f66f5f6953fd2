"""What each route answers, whatever web framework it is called by."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from . import answered, codecs, encodings, page, protocol, protocol_raw, swagger
from .batching import Entry
from .codecs import JSON, to_json
from .metrics import CONTENT_TYPE
from .ports import Arrays, Port, samples_first
from .problems import Invalid, Refused, UnknownEncoding
from .raw.rawio import RawIo
from .raw.requests import Given
from .service import Live, Service

__all__ = ["GETS", "INFER", "INFER_ROUTE", "POSTS", "TENSORS", "Ask", "Reply", "Request", "answer", "told"]

_HTML = "text/html; charset=utf-8"
_PLAIN_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Reply(NamedTuple):
    """A response."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = {}


class Request(NamedTuple):
    """A request: header names are in small letters; `watch` is told of its entry in the queue."""

    body: bytes
    headers: Mapping[str, str]
    watch: Callable[[Entry], None]


class Asked(NamedTuple):
    """The tensors of a request, and what writes the reply of its outputs; it raises Refused."""

    arrays: Arrays
    write: Callable[[Arrays], Reply]


_Post = Callable[[Service, Live, Request], Awaitable[Reply]]
Ask = Callable[[Service, Live, Request], Asked]


async def answer(route: str, post: _Post, service: Service, request: Request) -> Reply:
    """Return a POST's reply, whatever happens, and count it."""
    started_s = time.perf_counter()
    live = service.live
    try:
        if encoding := request.headers.get("content-encoding"):
            # In a thread: what is unpacked may be large, however small it is packed.
            most = service.settings.max_body
            body = await asyncio.to_thread(encodings.decoded, request.body, encoding, most)
            request = request._replace(body=body)
        reply = await post(service, live, request)
    except Refused as refused:
        reply = told(service, route, refused)
    service.metrics.request(route, reply.status, time.perf_counter() - started_s)
    return reply


def told(service: Service, route: str, refused: Refused) -> Reply:
    """Return a refusal in the words of a route; that the model failed is logged."""
    if refused.status == 500:
        service.log("model error", route=route, error=str(refused))
    return refusal(refused, protocol_v2=route == INFER_ROUTE)


def refusal(refused: Refused, *, protocol_v2: bool = False) -> Reply:
    """Return a refusal: a list of what is wrong and where; in /v2 one sentence, as the protocol has it."""
    status = 400 if protocol_v2 and isinstance(refused, Invalid) else refused.status
    problems = [{"loc": list(p.loc), "msg": p.msg} for p in refused.problems]
    body: dict[str, Any] = {"error": str(refused)} if protocol_v2 else {"detail": problems}
    headers = {"retry-after": str(refused.retry_after_s)} if refused.retry_after_s else {}
    if isinstance(refused, UnknownEncoding):
        headers["accept-encoding"] = "gzip, deflate, zstd"
    return Reply(status, to_json(body), JSON, headers)


async def predict(service: Service, live: Live, request: Request) -> Reply:
    """Answer POST /predict and /invocations."""
    content_type = request.headers.get("content-type", "")
    value = None
    if live.io is not None:
        value = codecs.parse_json(request.body) if codecs.kind_of(content_type) == JSON else None
        if (reply := await _answered(service, live, live.io, request, value)) is not None:
            return reply
    asked = ask_predict(service, live, request, value)
    return asked.write(await _run(service, live, request, asked.arrays))


def ask_predict(service: Service, live: Live, request: Request, value: Any = None) -> Asked:
    """Return what a POST of tensors to /predict asks for; `value` is its JSON, if parsed. Raises Refused."""
    content_type, accept = request.headers.get("content-type", ""), request.headers.get("accept", "")
    arrays = codecs.decode(request.body, content_type, live.inputs, service.settings.max_body, value)
    return Asked(arrays, lambda outputs: Reply(200, *codecs.encode(outputs, accept, live.outputs)))


async def _run(service: Service, live: Live, request: Request, arrays: Arrays) -> Arrays:
    future: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
    entry = service.submit(live, arrays, partial(_resolve, future))
    request.watch(entry)
    try:
        return await future
    except asyncio.CancelledError:
        live.batcher.drop(entry)
        raise


def _resolve(future: asyncio.Future[Arrays], answer: Arrays | BaseException) -> None:
    if future.done():
        return
    if isinstance(answer, asyncio.CancelledError):
        future.cancel()
    elif isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


async def _answered(service: Service, live: Live, io: RawIo, request: Request, value: Any) -> Reply | None:
    """Answer a request with raw input, or {"data": tensors}; None for one with tensors."""
    content_type = request.headers.get("content-type", "")
    read = await service.readers.read(io, request.body, content_type, value)
    if read is not None:
        given, first = read
        arrays = answered.placed(first, live.inputs)
    else:
        tensors = codecs.tutorial(request.body, value, live.inputs)
        if tensors is None:
            return None
        given, arrays = None, tensors
        first = {p.name: samples_first(arrays[p.name], p) for p in live.inputs if p.name in arrays}
    codecs.need_json(request.headers.get("accept", ""))
    outputs = await _run(service, live, request, arrays)
    found = answered.answers(io, outputs, first, live.outputs)
    given = given or Given([], alone=len(found) == 1)
    return Reply(200, to_json(given.answer(found)), JSON)


async def infer(service: Service, live: Live, request: Request) -> Reply:
    """Answer POST /v2/models/M/infer."""
    body, raw = protocol.split(request.body, request.headers.get(protocol.HEADER_LENGTH, ""))
    if live.io is not None and protocol_raw.has_bytes(body):
        return await _infer_raw(service, live, live.io, request, body, raw)
    asked = _asked(service, live, body, raw)
    return asked.write(await _run(service, live, request, asked.arrays))


def ask_infer(service: Service, live: Live, request: Request) -> Asked:
    """Return what a POST of tensors to /v2/models/M/infer asks for. Raises Refused."""
    body, raw = protocol.split(request.body, request.headers.get(protocol.HEADER_LENGTH, ""))
    return _asked(service, live, body, raw)


def _asked(service: Service, live: Live, body: Mapping[str, Any], raw: memoryview) -> Asked:
    arrays, wanted = protocol.decode_infer(body, raw, live.inputs, live.outputs)

    def write(outputs: Arrays) -> Reply:
        found = protocol.encode_infer(outputs, wanted, service.name, live.version, live.outputs)
        return Reply(200, *found)

    return Asked(arrays, write)


async def _infer_raw(
    service: Service, live: Live, io: RawIo, request: Request, body: Mapping[str, Any], raw: memoryview
) -> Reply:
    read = await service.readers.arrays(io, partial(protocol_raw.given_of, body, raw, io.kinds))
    assert read is not None
    outputs = await _run(service, live, request, answered.placed(read[1], live.inputs))
    found = answered.answers(io, outputs, read[1], live.outputs)
    return Reply(200, *protocol_raw.encode_answers(found, body, service.name, live.version))


def no_route(status: int, path: str, allow: str = "", said: str = "") -> Reply:
    """Return the refusal of an unknown path, of a method that the path doesn't take, or what is said."""
    said = f"{path} takes {allow}" if status == 405 else f"there is no {path}" if status == 404 else said
    body: dict[str, Any] = {"detail": [{"loc": ["path"], "msg": said}]}
    if path == "/v2" or path.startswith("/v2/"):
        body = {"error": said}
    return Reply(status, to_json(body), JSON, {"allow": allow} if allow else {})


def unknown_model(service: Service, name: str, version: str) -> Reply | None:
    """Return the 404 for a model or version that isn't served, or None."""
    if name != service.name:
        return Reply(404, to_json({"error": f"unknown model {name!r}, the server has {service.name!r}"}))
    if version not in ("", service.live.version):
        return Reply(
            404, to_json({"error": f"unknown version {version!r}, the server has {service.live.version}"})
        )
    return None


def server_metadata(service: Service) -> Reply:
    """Answer GET /v2."""
    value = {"name": "deploy-runner", "version": "1", "extensions": ["binary_tensor_data"]}
    return Reply(200, to_json(value))


def model_metadata(service: Service) -> Reply:
    """Answer GET /v2/models/M."""
    model = service.live.model

    def tensor(port: Port) -> dict[str, Any]:
        return {"name": port.name, "datatype": port.datatype, "shape": list(port.shape)}

    value: dict[str, Any] = {
        "name": service.name,
        "versions": [service.live.version],
        "platform": model.program.platform,
        "inputs": [tensor(port) for port in model.inputs],
        "outputs": [tensor(port) for port in model.outputs],
        "parameters": {"digest": model.artifact.digest, "batching": model.joins},
    }
    if service.live.io is not None:
        value["parameters"]["raw_inputs"] = protocol_raw.described(service.live.io.kinds)
    return Reply(200, to_json(value))


def live(service: Service) -> Reply:
    """Answer GET /v2/health/live."""
    return Reply(200, to_json({"live": True}))


def ready(service: Service) -> Reply:
    """Answer GET /v2/health/ready and /ping: not while it drains."""
    if service.draining:
        return Reply(503, to_json({"ready": False}), JSON, {"retry-after": "1"})
    return Reply(200, to_json({"ready": True}))


def model_ready(service: Service) -> Reply:
    """Answer GET /v2/models/M/ready, as /v2/health/ready with the model's name."""
    server = ready(service)
    value = {"name": service.name, "ready": server.status == 200}
    return Reply(server.status, to_json(value), JSON, server.headers)


def metrics(service: Service) -> Reply:
    """Answer GET /metrics."""
    return Reply(200, service.metrics.text(), CONTENT_TYPE)


def index(service: Service) -> Reply:
    """Answer GET /: a page to try the model."""
    headers = {**_PLAIN_HEADERS, "content-security-policy": page.CONTENT_SECURITY_POLICY}
    return Reply(200, page.page(service).encode(), _HTML, headers)


def script(service: Service) -> Reply:
    """Answer GET /page.js."""
    return Reply(200, page.script(service).encode(), "text/javascript; charset=utf-8")


def style(service: Service) -> Reply:
    """Answer GET /page.css."""
    return Reply(200, page.STYLE.encode(), "text/css; charset=utf-8")


def docs(service: Service) -> Reply:
    """Answer GET /docs: Swagger UI."""
    headers = {**_PLAIN_HEADERS, "content-security-policy": swagger.CONTENT_SECURITY_POLICY}
    if swagger.source() is None:
        said = "Swagger UI is not installed: pip install fastapi-swagger; /openapi.json describes the routes"
        return Reply(404, to_json({"detail": [{"loc": ["path"], "msg": said}]}))
    return Reply(200, swagger.PAGE.format(name=html.escape(service.name)).encode(), _HTML, headers)


def _swagger_file(name: str, kind: str) -> Callable[[Service], Reply]:
    def file(service: Service) -> Reply:
        folder = swagger.source()
        if folder is None:
            return no_route(404, f"/docs/{name}")
        return Reply(200, (folder / name).read_bytes(), kind, _PLAIN_HEADERS)

    return file


def swagger_start(service: Service) -> Reply:
    """Answer GET /docs/start.js."""
    return Reply(200, swagger.START.encode(), "text/javascript; charset=utf-8", _PLAIN_HEADERS)


GETS: Mapping[str, Callable[[Service], Reply]] = {
    "/": index,
    "/page.js": script,
    "/page.css": style,
    "/docs": docs,
    "/docs/start.js": swagger_start,
    **{f"/docs/{name}": _swagger_file(name, kind) for name, kind in swagger.FILES.items()},
    "/ping": ready,
    "/metrics": metrics,
    "/v2": server_metadata,
    "/v2/health/live": live,
    "/v2/health/ready": ready,
}
POSTS: Mapping[str, _Post] = {"/predict": predict, "/invocations": predict}
INFER, INFER_ROUTE = infer, "/v2/infer"
TENSORS: Mapping[str, Ask] = {"/predict": ask_predict, "/invocations": ask_predict, INFER_ROUTE: ask_infer}
"""What reads a POST of tensors, by its route."""
