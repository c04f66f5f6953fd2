"""The push of docs/writing-a-push.md, as it stands there, against a web server on the loopback."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent

import pytest

from deploy_runner.registry import Registry
from deploy_runner.testing import StageRun, run_stage
from tests.conftest import ROOT, Project

PAGE = (ROOT / "docs/writing-a-push.md").read_text()
BLOCKS = dict(re.findall(r"^```([\w-]+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
LIVE = ("--config", "configs/production.yaml")
TOKEN = "a-token-of-the-server"
ONE, TWO = sha256(b"one").hexdigest(), sha256(b"two").hexdigest()


class WebServer(ThreadingHTTPServer):
    """Files with ETags and conditional writes (RFC 9110), for one token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.writes: list[str] = []

    @property
    def history(self) -> list[str]:
        found: list[str] = json.loads(self.files["/digits/history"])
        return found


class Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        found = self.server.files.get(self.path)
        if not self.allowed:
            self.answer(401)
        else:
            self.answer(404 if found is None else 200, found or b"")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        found = self.server.files.get(self.path)
        holds = found is None if "If-None-Match" in self.headers else self.headers["If-Match"] == etag(found)
        if not self.allowed:
            self.answer(401)
        elif not holds:
            self.answer(412)
        else:
            self.server.files[self.path] = body
            self.server.writes.append(self.path)
            self.answer(201)

    @property
    def allowed(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("ETag", etag(body))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return


def etag(body: bytes | None) -> str:
    return f'"{sha256(body or b"").hexdigest()}"'


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def website(server: WebServer, tmp_path: Path) -> Project:
    project = Project(tmp_path / "project")
    url = f"http://127.0.0.1:{server.server_port}"
    project.write("stages/push/web.py", BLOCKS["python"])
    project.write("pipeline.yaml", BLOCKS["yaml-pipeline"])
    project.write("configs/dry-run.yaml", BLOCKS["yaml-dry-run"].replace("http://127.0.0.1:8080", url))
    project.write(
        "configs/production.yaml", BLOCKS["yaml-production"].replace("https://models.example.com", url)
    )
    project.write("model.bin", "one")
    project.env |= {"WEB_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
    return project


def test_a_dry_run_is_cached_as_any_stage_is(website: Project, server: WebServer) -> None:
    assert website.states() == {"publish": "ran"}
    assert json.loads(website.output("publish")) == {"changes": [f"uploaded {ONE}", f"serving {ONE}"]}
    assert website.states() == {"publish": "hit"}
    assert server.files[f"/digits/{ONE}"] == b"one"


def test_a_live_push_converges(website: Project, server: WebServer) -> None:
    assert website.states(*LIVE) == {"publish": "ran"}
    assert website.states(*LIVE) == {"publish": "converged"}
    assert server.writes == [f"/digits/{ONE}", "/digits/history"]


def test_status_names_what_differs_and_changes_nothing(website: Project, server: WebServer) -> None:
    website.states(*LIVE)
    assert "served" in website.cli("status", *LIVE).stdout
    website.write("model.bin", "two")
    shown = website.cli("status", *LIVE, exits=1).stdout
    assert f"object: missing, wanted {TWO}" in shown
    assert f"served: {ONE}, wanted {TWO}" in shown
    assert server.history == [ONE]


def test_a_rollback_serves_an_earlier_release(website: Project, server: WebServer) -> None:
    website.states(*LIVE)
    website.write("model.bin", "two")
    website.states(*LIVE)
    assert server.history == [TWO, ONE]
    done = website.cli("rollback", "publish", *LIVE)
    assert f"serving {ONE[:12]} instead of {TWO[:12]}" in done.stdout
    website.cli("rollback", "publish", "--to", TWO[:8], *LIVE)
    assert server.history == [TWO, ONE]
    refused = website.cli("rollback", "publish", "--to", "0000", *LIVE, exits=1)
    assert f"no earlier release begins with '0000' (earlier releases: {ONE[:12]})" in refused.stderr


def test_other_content_under_its_name_is_a_conflict(website: Project, server: WebServer) -> None:
    server.files[f"/digits/{ONE}"] = b"something else"
    done = website.cli("run", *LIVE, exits=3)
    assert f"/digits/{ONE} has different content (delete it, then run again)" in done.stdout + done.stderr
    assert server.writes == []


def test_an_interrupted_push_is_completed(website: Project, server: WebServer) -> None:
    server.files[f"/digits/{ONE}"] = b"one"
    assert website.states(*LIVE) == {"publish": "ran"}
    assert server.writes == ["/digits/history"]


def test_its_own_test_passes(website: Project, server: WebServer, tmp_path: Path) -> None:
    known = Registry(website.folder).get("push.web")
    assert known is not None
    names = {"PushWeb": known.cls, "Path": Path, "StageRun": StageRun, "run_stage": run_stage, "token": TOKEN,
             "url": f"http://127.0.0.1:{server.server_port}", "artifact": website.folder / "model.bin"}  # fmt: skip
    exec(BLOCKS["python-test"], {**names, "tmp_path": tmp_path})
    assert server.history == [ONE]


def test_there_is_nothing_to_promote(website: Project) -> None:
    done = website.cli("promote", "publish", *LIVE, exits=1)
    assert "stage type 'push.web' has nothing to promote" in done.stderr


def test_a_service_that_does_not_exist_is_named(project: Project) -> None:
    stage = """
        from deploy_runner.sdk import Stage, StageInputs, StageOutputs, StageParams

        class Gcp(Stage):
            '''Push somewhere else.'''

            uses = "push.gcp"
            network = converges = True
            services = ("gcp",)

            class Params(StageParams):
                pass

            class Inputs(StageInputs):
                pass

            class Outputs(StageOutputs):
                pass
    """
    project.write("stages/push/gcp.py", dedent(stage))
    project.pipeline("out: {uses: push.gcp}")
    done = project.cli("run", exits=1)
    assert "services: there is no local server 'gcp', only aws, hub, mlflow, oci" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
