"""Who is pushing: Basic or Bearer, by what the pipeline, or docker's or podman's login, has.

Sources: https://distribution.github.io/distribution/spec/auth/token/ and
https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md
"""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deploy_runner.sdk import StageError

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

__all__ = ["Login", "find_login", "is_loopback"]

_HUB = ("https://index.docker.io/v1/", "docker.io", "registry-1.docker.io")
"""How docker's own registry is called in its files, and what answers."""
_TIMEOUT_S = 30


@dataclass(slots=True)
class Login:
    """A user of a registry; without a name it is anonymous. `found` says where the name was found."""

    host: str
    user: str = ""
    password: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)
    """A refresh token, which some registries' logins give instead of a password."""
    found: str = ""
    _header: str = field(default="", repr=False)

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Sign a request, if it goes to the registry itself: uploads may lead elsewhere."""
        if self._header and urlsplit(str(request.url)).netloc == self.host:
            request.headers["Authorization"] = self._header
        return request

    def renew(self, session: Session, answer: Response, scope: str) -> bool:
        """Meet the challenge of a 401; say whether there is something new to try. Raises StageError."""
        kind, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
        before = self._header
        if kind.lower() == "basic" and self.user:
            self._header = f"Basic {self._basic()}"
        elif kind.lower() == "bearer":
            asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
            self._header = f"Bearer {self._token(session, asked, scope)}"
        return self._header != before

    def _basic(self) -> str:
        return base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def _token(self, session: Session, asked: dict[str, str], scope: str) -> str:
        realm = asked.get("realm", "")
        place = urlsplit(realm)
        if place.scheme != "https" and not is_loopback(place.netloc):
            raise StageError(
                f"{self.host} wants its credentials sent to {realm or 'nowhere'}, which isn't https"
            )
        given = {"scope": scope} | ({"service": asked["service"]} if "service" in asked else {})
        if self.identity:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": self.identity,
                "client_id": "deploy-runner",
            }
            answer = session.post(realm, data=given | form, timeout=_TIMEOUT_S, auth=_plain)
        else:
            headers = {"Authorization": f"Basic {self._basic()}"} if self.user else {}
            answer = session.get(realm, params=given, headers=headers, timeout=_TIMEOUT_S, auth=_plain)
        try:
            said = answer.json() if answer.status_code == 200 else {}
        except ValueError:
            said = {}
        token = said.get("token") or said.get("access_token")
        if not token:
            who = f"the user {self.user}" if self.user else "anonymous users"
            raise StageError(f"{place.netloc} gives {who} no token for {scope}: HTTP {answer.status_code}",
                             fix=f"docker login {self.host}, or set username and password")  # fmt: skip
        return str(token)


def _plain(request: PreparedRequest) -> PreparedRequest:
    """Leave a request as it is: without this, requests would look into ~/.netrc."""
    return request


def is_loopback(netloc: str) -> bool:
    """Say whether a HOST:PORT is this machine, to which docker speaks HTTP, too."""
    host = urlsplit(f"//{netloc}").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def find_login(host: str, user: str | None, password: str | None) -> Login:
    """Return who pushes to a host: as said, else as docker's or podman's login file says, else nobody."""
    if user or password:
        if not user or not password:
            raise StageError("username and password belong together", fix="set both, or neither")
        return Login(host, user, password, found="the parameters username and password")
    place = os.environ.get("REGISTRY_AUTH_FILE", "")
    if not place or not Path(place).is_file():
        return Login(host)
    try:
        said = json.loads(Path(place).read_text("utf-8"))
        return _from_file(host, said, place)
    except (ValueError, TypeError, AttributeError):
        raise StageError(f"{place} is not what docker login writes", fix=f"docker login {host}") from None


def _from_file(host: str, said: dict[str, Any], place: str) -> Login:
    names = _HUB if host in _HUB else (host, f"https://{host}", f"https://{host}/v2/", f"https://{host}/v1/")
    row = next((said["auths"][name] for name in names if name in said.get("auths", {})), None) or {}
    user, _, password = base64.b64decode(row.get("auth", ""), validate=True).decode().partition(":")
    identity = row.get("identitytoken", "")
    if user or identity:
        return Login(host, user, password.rstrip("\0"), identity, found=place)
    helper = said.get("credHelpers", {}).get(host) or said.get("credsStore")
    if helper:
        raise StageError(f"{place} leaves the login of {host} to docker-credential-{helper}, which a stage "
                         "can't run", fix="set username and password from secrets")  # fmt: skip
    return Login(host)
