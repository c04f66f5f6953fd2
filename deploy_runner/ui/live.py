"""A run as it goes: events of its log and of what a stage prints, and whole logs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from .drawing import graph_of
from .following import Follower, Tail, open_below, tail
from .outlines import outline_for
from .run_page import Row, stage_rows
from .site import Site
from .text import visible

__all__ = ["add_live_routes", "content"]

_LOOK_S = 0.4
_LIST_LOOKS = 5
_BEAT_LOOKS = 40
_TAIL_BYTES = 128 * 1024
_REPORT_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20


def add_live_routes(app: FastAPI, site: Site) -> None:
    """Add what follows a run, and the logs of its stages."""
    library = site.library

    @app.get("/events")
    def changes(seen: str = "") -> StreamingResponse:
        return _stream(_list_events(site, seen))

    @app.get("/runs/{id_}/events")
    def events(id_: str) -> StreamingResponse:
        follower = library.follower(id_)
        if follower is None:
            raise HTTPException(404, f"no run {id_} is in this store")
        return _stream(_run_events(site, id_, follower))

    @app.get("/runs/{id_}/graph")
    def graph(id_: str) -> HTMLResponse:
        follower, outline = library.follower(id_), library.outline_of(id_)
        if follower is None or outline is None:
            raise HTTPException(404, f"run {id_} has no graph")
        follower.read()
        return HTMLResponse(graph_of(stage_rows(None, outline, follower, running=True), outline, going=True))

    @app.get("/runs/{id_}/log")
    def log(id_: str, stage: str = "") -> HTMLResponse:
        folder, name = _log(site, id_, stage)
        found = tail(folder, name, None, _TAIL_BYTES)
        run = library.run(id_)
        return site.page(
            "log.html", run=run, stage=stage, text=visible(_decoded(found)), left_out=found.left_out,
            place=found.place,
        )  # fmt: skip

    @app.get("/runs/{id_}/log/events")
    def log_events(id_: str, stage: str = "", place: str = "0") -> StreamingResponse:
        folder, name = _log(site, id_, stage)
        start = int(place) if place.isdecimal() and len(place) < 16 else 0
        return _stream(_log_events(site, id_, folder, name, start))

    @app.get("/runs/{id_}/log.txt")
    def whole_log(id_: str, stage: str = "") -> Response:
        folder, name = _log(site, id_, stage)
        try:
            fd = open_below(folder, name)
        except OSError:
            return Response(b"", media_type="text/plain")
        return StreamingResponse(_chunks(fd), media_type="text/plain")


def _stream(parts: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(parts, media_type="text/event-stream")


def _event(name: str, value: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"


async def _list_events(site: Site, seen: str) -> AsyncIterator[str]:
    """Yield when the runs are others than a page has `seen`."""
    looks = 0
    while not site.closing:
        if looks % _LIST_LOOKS == 0 and (found := await asyncio.to_thread(site.library.newest)) != seen:
            seen = found
            yield _event("changed", "")
        elif looks % _BEAT_LOOKS == 0:
            yield ": still here\n\n"
        looks += 1
        await asyncio.sleep(_LOOK_S)


async def _run_events(site: Site, id_: str, follower: Follower) -> AsyncIterator[str]:
    """Yield the stages that have changed, until the run has ended."""
    sent: dict[str, Row] = {}
    looks, seen = 0, -1
    while not site.closing:
        run = await asyncio.to_thread(site.library.run, id_)
        changes = await asyncio.to_thread(follower.read)
        if run is None or run.phase != "running":
            yield _event("end", "")
            return
        if changes != seen:
            seen = changes
            outline = site.library.outline_of(id_)
            rows = stage_rows(None, outline, follower, running=True)
            new = [row for row in rows if sent.get(row.id) != row]
            sent.update({row.id: row for row in new})
            yield _event("stages", [_as_json(row) for row in new])
        elif looks % _BEAT_LOOKS == 0:
            yield ": still here\n\n"
        looks += 1
        await asyncio.sleep(_LOOK_S)


def _as_json(row: Row) -> dict[str, Any]:
    said = visible(row.error or row.reason)
    return {"id": row.id, "state": row.state, "seconds": row.seconds, "since": row.since_s, "said": said}


async def _log_events(site: Site, id_: str, folder: Path, name: str, place: int) -> AsyncIterator[str]:
    """Yield what a stage prints from a place on, until the run has ended."""
    looks = 0
    while not site.closing:
        run = await asyncio.to_thread(site.library.run, id_)
        found = await asyncio.to_thread(tail, folder, name, place, _TAIL_BYTES)
        if found.text:
            place = found.place
            yield _event(
                "text", {"text": visible(_decoded(found)), "left_out": found.left_out, "place": place}
            )
        elif run is None or run.phase != "running":
            yield _event("end", "")
            return
        elif looks % _BEAT_LOOKS == 0:
            yield ": still here\n\n"
        looks += 1
        await asyncio.sleep(_LOOK_S)


def _decoded(found: Tail) -> str:
    return found.text.decode("utf-8", "replace")


def _log(site: Site, id_: str, stage: str) -> tuple[Path, str]:
    """Return the folder of the logs of a run, and the name of that of a stage which the run has."""
    if site.library.run(id_) is None:
        raise HTTPException(404, f"no run {id_} is in this store")
    record = site.library.record(id_)
    outline = outline_for(site.library, record) if record else site.library.outline_of(id_)
    known = {*(record.stages if record else ()), *(outline.stages if outline else ())}
    if stage not in known or "/" in stage or stage.startswith("."):
        raise HTTPException(404, f"run {id_} has no stage {stage!r}")
    return site.home / "runs" / id_ / "logs", f"{stage}.log"


def _chunks(fd: int) -> Iterator[bytes]:
    try:
        while part := os.read(fd, _CHUNK_BYTES):
            yield part
    finally:
        os.close(fd)


def content(folder: Path, name: str) -> bytes | None:
    """Return a file of a run, if it is one and not unreasonably large."""
    try:
        fd = open_below(folder, name)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        found = file.read(_REPORT_BYTES + 1)
    return found if len(found) <= _REPORT_BYTES else None
