"""Ask the app without a network: what a context is tried with when it is made."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NoReturn

from .log import Log
from .model import Model, load
from .options import Settings, add_options, read_settings
from .problems import UnfitArtifact
from .service import Service

__all__ = ["answers"]

_NOTHING: Mapping[str, str] = {}


def answers(
    arguments: Sequence[str], bodies: Sequence[bytes], environ: Mapping[str, str] = _NOTHING
) -> list[tuple[int, bytes]]:
    """Load a model as `arguments` and environment say, and POST JSON to /predict; return status and body.

    Raises UnfitArtifact where there is nothing that can be served.
    """
    parser = _Parser()
    parser.add_argument("artifact")
    add_options(parser)
    try:
        settings = read_settings(vars(parser.parse_args(arguments)), environ)
    except argparse.ArgumentTypeError as error:
        raise UnfitArtifact(str(error)) from None
    return asyncio.run(_answers(settings, load(settings, 1), bodies))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UnfitArtifact(message)


async def _answers(settings: Settings, model: Model, bodies: Sequence[bytes]) -> list[tuple[int, bytes]]:
    service = Service(settings, Log(as_json=True))
    await service.start(model)
    ask = _wsgi if settings.server == "flask" else _asgi
    found = await ask(service, bodies)
    await service.stop()
    return found


async def _asgi(service: Service, bodies: Sequence[bytes]) -> list[tuple[int, bytes]]:
    from .asgi import App

    app = App(service)
    return [await _ask(app, body) for body in bodies]


async def _ask(app: Any, body: bytes) -> tuple[int, bytes]:
    sent: list[Mapping[str, Any]] = []
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": "/predict", "headers": headers}, receive, send)
    return sent[0]["status"], sent[1]["body"]


async def _wsgi(service: Service, bodies: Sequence[bytes]) -> list[tuple[int, bytes]]:
    from .wsgi import flask_app

    client = flask_app(service, asyncio.get_running_loop()).test_client()

    def ask(body: bytes) -> tuple[int, bytes]:
        response = client.post("/predict", data=body, content_type="application/json")
        return response.status_code, response.get_data()

    return [await asyncio.to_thread(ask, body) for body in bodies]
