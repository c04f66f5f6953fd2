"""Who may read the page: the one who has the token, in a browser that meant this server.

Every other program on this machine can reach a port of the loopback, and any web page can have a browser
send it requests. So a request needs the token (first in the address, then as a cookie that scripts can't
read and other sites don't send, or as `Authorization: Bearer`), a Host that is ours (a name that was made to
lead here is somebody else's), and must not come from another origin.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

__all__ = ["HEADERS", "Guard"]

_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
"""Sent with every response that doesn't say otherwise itself."""

_NO_TOKEN = "This page needs its token: open the address that `deploy-runner ui` printed when it started.\n"
_ENTER = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>deploy-runner</title><link rel="icon" href="data:,">
<meta http-equiv="refresh" content="0;url={place}"></head>
<body><p><a href="{place}">Continue to deploy-runner</a></p></body></html>
"""


class Guard:
    """Lets through to `app` what may pass, and answers the rest itself."""

    def __init__(self, app: _App, token: str, port: int) -> None:
        self._app = app
        self._token = token.encode()
        self._cookie = f"deploy-runner-ui-{port}"
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        if port == 80:
            self._hosts |= {"127.0.0.1", "localhost"}

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        refusal = self._refusal(scope["method"], headers)
        if refusal:
            await _answer(send, *refusal)
        elif scope["method"] in ("GET", "HEAD") and self._is_token(query.pop("token", "")):
            await self._enter(send, scope["path"], query)
        elif not (self._has_cookie(headers) or self._has_bearer(headers)):
            await _answer(send, 403, _NO_TOKEN)
        else:
            await self._app(scope, receive, _with_headers(send))

    def _refusal(self, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if host not in self._hosts:
            return 403, f"This page is served as {min(self._hosts)} only.\n"
        if method not in ("GET", "HEAD", "POST"):
            return 405, "Nothing can be changed here.\n"
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return 403, "Requests of other sites are not answered.\n"
        if method == "POST" and "origin" not in headers:
            return 403, "A POST needs the Origin of this page.\n"
        return None

    def _is_token(self, said: str) -> bool:
        return hmac.compare_digest(said.encode("utf-8", "surrogatepass"), self._token)

    def _has_cookie(self, headers: dict[str, str]) -> bool:
        """Say whether a request has the cookie, and isn't one that another origin has made a browser send."""
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return False
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return morsel is not None and self._is_token(morsel.value)

    def _has_bearer(self, headers: dict[str, str]) -> bool:
        scheme, _, said = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._is_token(said)

    async def _enter(self, send: _Send, path: str, query: dict[str, str]) -> None:
        """Set the cookie and lead on to the same page without the token.

        A redirect would still be a request of whatever page the address was opened from, to which a browser
        adds no such cookie; from this page it adds one.
        """
        place = quote("/" + path.lstrip("/\\")) + (f"?{urlencode(query)}" if query else "")
        body = _ENTER.format(place=place.replace("&", "&amp;").replace('"', "%22"))
        token = self._token.decode()
        cookie = f"{self._cookie}={token}; Path=/; HttpOnly; SameSite=Strict"
        await _answer(send, 200, body, "text/html", ((b"set-cookie", cookie.encode()),))


def _with_headers(send: _Send) -> _Send:
    async def sent(message: _Message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}
            more = [pair for pair in HEADERS.items() if pair[0] not in own]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sent


async def _answer(
    send: _Send, status: int, text: str, kind: str = "text/plain", more: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    body = text.encode()
    headers = [
        (b"content-type", f"{kind}; charset=utf-8".encode()),
        (b"content-length", b"%d" % len(body)),
        *HEADERS.items(),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
