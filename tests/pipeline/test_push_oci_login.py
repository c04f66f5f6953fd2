"""Who pushes to a registry: passwords, tokens, and the logins of docker and podman."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from deploy_runner.errors import StageError
from deploy_runner.stages.push.registry import login
from tests import registry
from tests.bundles import stage
from tests.registry import calls, folder_of, push


@pytest.mark.slow
def test_a_password_is_taken_from_the_pipeline_or_from_docker(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry.reference(program, tmp_path / "registry", password=True) as host:
        artifact = folder_of(tmp_path, "one")
        with pytest.raises(StageError, match="anonymous users may not pull,push"):
            push(tmp_path, host, artifact)
        with pytest.raises(StageError, match="the user me may not pull,push"):
            push(tmp_path, host, artifact, username=registry.USER, password="wrong")
        made = push(tmp_path, host, artifact, username=registry.USER, password=registry.PASSWORD)
        assert calls(made)
        place = tmp_path / "config.json"
        auth = login.Login("", registry.USER, registry.PASSWORD)._basic()
        place.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(place))
        assert push(tmp_path, host, artifact).context.converged


class Tokens(BaseHTTPRequestHandler):
    """A registry that takes one token, and the service that gives it to one user."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        self.asked.append((split.path, self.headers.get("Authorization", "")))
        if split.path == "/token":
            right = self.headers.get("Authorization") == f"Basic {login.Login('', 'me', 'pw')._basic()}"
            scope = parse_qs(split.query)["scope"] == ["repository:models/digits:pull,push"]
            self.answer(200 if right and scope else 401, json.dumps({"token": "t0ken"}).encode())
        elif self.headers.get("Authorization") != "Bearer t0ken":
            realm = f"http://{self.headers['Host']}/token"
            self.answer(401, b"", **{"WWW-Authenticate": f'Bearer realm="{realm}",service="here"'})
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name upstream
        pass


@pytest.fixture
def tokens() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    Tokens.asked.clear()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_token_is_asked_for_once(tmp_path: Path, tokens: str) -> None:
    pushing = stage("push.oci")()
    context = push_context(tmp_path, tokens)
    params = {"repository": "models/digits", "username": "me", "password": "pw"}
    found = pushing.status(
        context,
        pushing.Params.model_validate(params),
        pushing.Inputs.model_validate({"artifact": folder_of(tmp_path, "one")}),
    )
    assert [f.found for f in found] == ["4 files missing", "missing"]
    assert [path for path, _ in Tokens.asked].count("/token") == 1
    with pytest.raises(StageError, match="gives the user me no token"):
        pushing.status(
            context, pushing.Params.model_validate({**params, "password": "wrong"}),
            pushing.Inputs.model_validate({"artifact": tmp_path / "artifact-one"}),
        )  # fmt: skip


def push_context(folder: Path, host: str) -> Any:
    from deploy_runner.sdk import Context

    work = folder / "work"
    work.mkdir()
    return Context(stage="push", workdir=work, target={"oci": {"registry": host}})


def test_a_token_is_never_asked_for_without_https(tmp_path: Path) -> None:
    class Answer:
        headers: ClassVar = {"WWW-Authenticate": 'Bearer realm="http://tokens.example.com/"'}

    with pytest.raises(StageError, match="which isn't https"):
        login.Login("registry.example.com", "me", "pw").renew(requests.Session(), Answer(), "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"auths": {}, "credsStore": "desktop"}',
            "leaves the login of ghcr.io to docker-credential-desktop",
        ),
        ("[]", "is not what docker login writes"),
        ('{"auths": {"ghcr.io": {"auth": "%%%"}}}', "is not what docker login writes"),
    ],
)
def test_a_login_that_cannot_be_used_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "config.json"))
    with pytest.raises(StageError, match=said):
        login.find_login("ghcr.io", None, None)
