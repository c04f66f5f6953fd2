"""The addresses of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from ..engine.runs import KEPT_RUNS, kept_runs, pinned_runs
from ..errors import DeployRunnerError
from ..report.graph_svg import STYLE, anchor
from .comparing import compare
from .deployed import pushed
from .drawing import graph_of
from .figures import figures_page
from .library import OTHER_VERSION, Run
from .lineage import lineage_of
from .live import add_live_routes, content
from .outlines import outline_for
from .overview import pipelines_of
from .run_page import headline_of, stage_rows
from .site import HERE, Site

__all__ = ["build_app"]

_PAGE = 50
_RECENT = 10
_MATCHING = 50
"""How many runs are read to complete a digest."""


def build_app(site: Site) -> FastAPI:
    """Return the application that serves the pages of a site."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/static/graph.css")
    def graph_style() -> Response:
        return Response(STYLE, media_type="text/css")

    app.mount("/static", StaticFiles(directory=HERE / "static"))
    library = site.library

    @app.get("/")
    def overview() -> HTMLResponse:
        seen = library.newest()
        runs = list(library.runs())
        return site.page(
            "overview.html",
            seen=seen,
            pipelines=pipelines_of(site, runs),
            runs=runs[:_RECENT],
            count=len(runs),
        )

    @app.get("/runs")
    def runs(pipeline: str = "", page: str = "1") -> HTMLResponse:
        number = int(page) if page.isdecimal() and 0 < len(page) < 9 else 1
        number = max(number, 1)
        start = (number - 1) * _PAGE
        seen = library.newest()
        found = list(islice(library.runs(pipeline), start, start + _PAGE + 1))
        chosen = next((run for run in found if run.files), None) if pipeline else None
        return site.page(
            "runs.html", seen=seen, runs=found[:_PAGE], number=number, more=len(found) > _PAGE,
            pipeline=pipeline, title=site.described(chosen.files) if chosen else "",
            pinned=pinned_runs(site.home), count=len(library.ids()),
        )  # fmt: skip

    @app.get("/runs/{id_}")
    def run(id_: str) -> HTMLResponse:
        found = _found(site, id_)
        record = library.record(id_)
        if found.phase == "finished" and record is None:
            found = replace(found, phase="unreadable", problem=OTHER_VERSION)
        outline = outline_for(library, record) if record else library.outline_of(id_)
        follower = library.follower(id_) if record is None else None
        if follower is not None:
            follower.read()
        going = found.phase == "running"
        rows = stage_rows(record, outline, follower, running=going)
        return site.page(
            "run.html", run=found, record=record, rows=rows, first=headline_of(library, id_), anchor=anchor,
            graph=graph_of(rows, outline, going=going) if outline else "",
            notes=follower.notes if follower else [], before=_before(site, found),
            report=(site.home / "runs" / id_ / "report.html").is_file(),
        )  # fmt: skip

    @app.get("/runs/{id_}/report")
    def report(id_: str) -> Response:
        _found(site, id_)
        return _report(site, id_)

    @app.get("/compare")
    def comparison(a: str = "", b: str = "", all: str = "") -> HTMLResponse:  # noqa: A002
        old, new = library.record(a), library.record(b)
        if old is None or new is None:
            choices = [run for run in islice(library.runs(), 200) if run.phase == "finished"]
            return site.page("choose.html", runs=choices, a=a, b=b)
        pairs = compare(library, old, new)
        shown = pairs if all else [pair for pair in pairs if pair.differs]
        return site.page("compare.html", old=old, new=new, pairs=shown, count=len(pairs), all=bool(all))

    @app.get("/figures")
    def figures(pipeline: str = "", of: str = "") -> HTMLResponse:
        return figures_page(site, pipeline, of)

    @app.get("/artifacts")
    def artifacts(digest: str = "") -> HTMLResponse:
        digest = digest.strip().lower().removeprefix("sha256:")
        newest = [library.record(pipeline.last.id) for pipeline in pipelines_of(site, list(library.runs()))]
        shown = [record for record in newest if record is not None]
        return site.page("artifacts.html", records=shown, digest=digest, found=_matching(site, digest))

    @app.get("/artifacts/{digest}")
    def artifact(digest: str) -> HTMLResponse:
        whole = len(digest) == 64 and digest.isalnum()
        lineage = lineage_of(library, digest) if whole else None
        if lineage is None:
            raise HTTPException(404, f"no run of this store has an artifact {digest}")
        return site.page("artifact.html", digest=digest, lineage=lineage)

    @app.get("/deployed")
    def deployed() -> HTMLResponse:
        return site.page("deployed.html", pushed=pushed(site), answer=None, asked="")

    @app.post("/deployed")
    def ask_remote(pipeline: str = "") -> HTMLResponse:
        found = pushed(site)
        asked = next((one for one in found if one.id == pipeline), None)
        if asked is None:
            raise HTTPException(404, "no such pipeline has been run here")
        answer = site.asker.ask(["status", *asked.words])
        return site.page("deployed.html", pushed=found, answer=answer, asked=pipeline)

    @app.get("/cleanup")
    def cleanup() -> HTMLResponse:
        return site.page("cleanup.html", answer=None, doomed=[], kept=KEPT_RUNS)

    @app.post("/cleanup")
    def ask_gc() -> HTMLResponse:
        answer = site.asker.ask(["cache", "gc", str(site.pipeline), "--dry-run"])
        kept: Mapping[str, Any] = {} if answer.error else kept_runs(site.home, KEPT_RUNS)
        doomed = [] if answer.error else [id_ for id_ in library.ids() if id_ not in kept]
        runs = [run for id_ in doomed if (run := library.run(id_)) is not None]
        return site.page("cleanup.html", answer=answer, doomed=runs, kept=KEPT_RUNS)

    add_live_routes(app, site)

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> HTMLResponse:
        return site.page("error.html", error.status_code, said=str(error.detail))

    @app.exception_handler(DeployRunnerError)
    def failed(request: Request, error: DeployRunnerError) -> HTMLResponse:
        return site.page("error.html", 503, said=str(error))

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> HTMLResponse:
        said = f"{request.url.path} failed: {type(error).__name__}: {error}. This is a bug of deploy-runner"
        return site.page("error.html", 500, said=said)

    return app


def _found(site: Site, id_: str) -> Run:
    found = site.library.run(id_)
    if found is None:
        raise HTTPException(404, f"no run {id_} is in this store")
    return found


def _before(site: Site, run: Run) -> str:
    """Return the id of the run before this one of the same pipeline."""
    if run.phase != "finished":
        return ""
    earlier = (other for other in site.library.runs(run.pipeline) if other.number < run.number)
    return next((other.id for other in earlier if other.phase == "finished"), "")


def _matching(site: Site, digest: str) -> list[str]:
    """Return the digests that begin so, of the newest runs."""
    if len(digest) < 4 or not digest.isalnum():
        return []
    found: dict[str, None] = {}
    for id_ in site.library.holding(digest, site.library.ids()[:200])[:_MATCHING]:
        record = site.library.record(id_)
        stages = record.stages.values() if record else ()
        found |= {a.digest: None for s in stages for a in s.artifacts.values() if a.digest.startswith(digest)}
    return list(found)


def _report(site: Site, id_: str) -> Response:
    """Return a run's report as a page that can do nothing here: it isn't signed."""
    body = content(site.home / "runs" / id_, "report.html")
    if body is None:
        return PlainTextResponse("this run has no report\n", 404)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
    return Response(body, media_type="text/html", headers={"content-security-policy": policy})
