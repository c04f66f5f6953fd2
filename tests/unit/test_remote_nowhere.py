"""An address that has nothing, not even a place to write: the run ends, and says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import Project


class _Nowhere(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(404)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture(params=["", "ContainerNotFound"])
def nowhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that answers 404 to everything."""
    body = f"<Error><Code>{request.param}</Code></Error>".encode() if request.param else b""
    handler = type("Nowhere", (_Nowhere,), {"body": body})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_run_whose_shared_cache_does_not_exist_ends(chain: Project, nowhere: str) -> None:
    env = {
        "DEPLOY_RUNNER_REMOTE": "s3://bucket/prefix", "DEPLOY_RUNNER_CACHE_KEY": "k" * 32,
        "AWS_ENDPOINT_URL": nowhere, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
    }  # fmt: skip
    done = chain.cli("run", "--set", "cache.push=true", **env)
    assert "3 stages: 3 ran" in done.stdout
    assert done.stdout.count("the shared cache") == 1, done.stdout
    assert "the container doesn't exist" in done.stdout or "it answers 404 Not Found" in done.stdout
