"""How the local Hub answers HTTP: routes, bodies, errors, and who is asking."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import IO, Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from .hub_state import HubError, HubState, Repo

__all__ = ["Account", "Answering", "HubHandler", "route"]

_CHUNK_BYTES = 1 << 20
_ROUTES: list[tuple[str, re.Pattern[str], str]] = []


@dataclass(frozen=True, slots=True)
class Account:
    """Whose a token is, what it may do ("read" or "write"), and the organisations of its user.

    Without namespaces of its own (`orgs` of "*") it may use all of them.
    """

    user: str = "local"
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def has(self, namespace: str) -> bool:
        """Say whether a namespace is the user's own, or one of an organisation of theirs."""
        return "*" in self.orgs or namespace in (self.user, *self.orgs)


class Answering(Protocol):
    """What a request needs to know of the Hub that it came to."""

    state: HubState
    requests: list[str]
    accounts: Mapping[str, Account]
    quota_bytes: int | None
    multipart_bytes: int


def route(method: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a method of a handler for a path; `{repo}` stands for `models/NAMESPACE/NAME` and the like.

    Paths are matched in the order in which the methods were registered.
    """
    expanded = pattern.replace("{repo}", r"(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+(?:/[^/]+)?)")

    def register(function: Callable[..., None]) -> Callable[..., None]:
        _ROUTES.append((method, re.compile(expanded + r"\Z"), function.__name__))
        return function

    return register


class HubHandler(BaseHTTPRequestHandler):
    """One request and its answer."""

    hub: Answering
    protocol_version = "HTTP/1.1"
    server_version = "local-hub"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name upstream
        """Say nothing; `LocalHub.requests` has it."""

    def do_GET(self) -> None:
        """Answer GET."""
        self._answer("GET")

    def do_HEAD(self) -> None:
        """Answer HEAD."""
        self._answer("HEAD")

    def do_POST(self) -> None:
        """Answer POST."""
        self._answer("POST")

    def do_PUT(self) -> None:
        """Answer PUT."""
        self._answer("PUT")

    def do_DELETE(self) -> None:
        """Answer DELETE."""
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        split = urlsplit(self.path)
        self.hub.requests.append(f"{method} {split.path}")
        self._query = parse_qs(split.query, keep_blank_values=True)
        self._unread = True
        try:
            for known, pattern, name in _ROUTES:
                found = pattern.match(split.path)
                if found and known in (method, "GET" if method == "HEAD" else method):
                    arguments = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
                    getattr(self, name)(**arguments)
                    return
            raise HubError(404, f"There is no {method} {split.path} here")
        except HubError as error:
            self._refuse(error)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _refuse(self, error: HubError) -> None:
        headers = {"X-Error-Message": error.message}
        if error.code:
            headers["X-Error-Code"] = error.code
        self.close_connection = self._unread and self.command in ("POST", "PUT")
        self._json({"error": error.message, **error.extra}, status=error.status, headers=headers)

    def _json(self, value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), "application/json", status=status, headers=headers)

    def _send(
        self, body: bytes, kind: str, *, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Request-Id", hashlib.sha256(self.path.encode()).hexdigest()[:16])
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body_to(self, target: IO[bytes]) -> None:
        """Copy the request's body, chunked or not."""
        self._unread = False
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self._copy(size, target)
                self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b"\n", b""):
                pass
            return
        self._copy(int(self.headers.get("Content-Length") or 0), target)

    def _copy(self, size: int, target: IO[bytes]) -> None:
        while size:
            data = self.rfile.read(min(size, _CHUNK_BYTES))
            if not data:
                raise HubError(400, "The request's body is cut short")
            target.write(data)
            size -= len(data)

    def _body(self) -> bytes:
        buffer = io.BytesIO()
        self._body_to(buffer)
        return buffer.getvalue()

    def _json_body(self) -> dict[str, Any]:
        try:
            value = json.loads(self._body() or b"{}")
        except ValueError:
            raise HubError(400, "The request's body is not JSON") from None
        return value if isinstance(value, dict) else {}

    @property
    def _url(self) -> str:
        """Return our address as the client knows it, which is another one behind a proxy."""
        return f"http://{self.headers['Host']}"

    def _account(self) -> Account | None:
        """Return who is asking; None for nobody. Raises HubError for a token that is not known."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return None
        if not self.hub.accounts:
            return Account(orgs=("*",))
        if token not in self.hub.accounts:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.accounts[token]

    def _require_token(self) -> Account:
        account = self._account()
        if account is None:
            raise HubError(401, "Invalid username or password.")
        return account

    def _require_write(self, namespace: str) -> Account:
        account = self._require_token()
        if account.role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if not account.has(namespace):
            raise HubError(403, f"You don't have the rights to write to the namespace {namespace!r}")
        return account

    def _repo(self, kind: str, repo: str) -> Repo:
        """Return a repository that may be read. One that may not be is as if it wasn't there."""
        account = self._account()
        found = self.hub.state.repo(kind, repo, anonymous=account is None)
        if found.private and (account is None or not account.has(repo.partition("/")[0])):
            raise HubError(401 if account is None else 404, "Repository not found", "RepoNotFound")
        return found

    def _writable(self, kind: str, repo: str) -> Repo:
        found = self._repo(kind, repo)
        self._require_write(repo.partition("/")[0])
        return found
