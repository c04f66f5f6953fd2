"""Talk to the Hugging Face Hub through its real client, with our policy of tries.

The client tries most calls six times with fixed delays and without a timeout, and commits once. Here
every call is tried by `backoff`, but for commits: whether one that got no answer has happened is for
the caller to find out, or it might happen twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import Context, StageError

from ..backoff import Backoff, transient_status
from ..converging import Service
from .errors import TOKEN_FIX

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CONNECT_S = 20.0
ANSWER_S = 120.0
"""How long the Hub may be silent; the client's own limit is none at all."""

_FIRST_CONTACT_TRIES = 3
_BY_THE_WAY = "/api/agent-harnesses"
"""What the client asks on its own account, once, and can do without."""

_COMMIT = re.compile(r"/api/[^/]+/.+/commit/")
_RATE_LIMIT = re.compile(r'"\w+"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)')
"""`r` requests are left for `t` seconds: draft-ietf-httpapi-ratelimit-headers, which the Hub sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub(Service):
    """The Hub by its client's API, and the repository's full name."""

    api: Any
    repo: str


class UnansweredError(Exception):
    """A commit got no answer, or one that says nothing about it: it has happened or it hasn't."""

    def __init__(self, what: str, retry_after: str | None) -> None:
        super().__init__(what)
        self.retry_after = retry_after


def require_token() -> None:
    """Raise StageError where there is no token."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise StageError("no Hub token was found", fix=TOKEN_FIX)


@contextmanager
def hub_client(ctx: Context, backoff: Backoff) -> Iterator[HfApi]:
    """Yield the client's API for the endpoint of this run; all its calls are tried by `backoff`."""
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils._http import default_client_factory

    template = default_client_factory()
    endpoint = os.environ.get("HF_ENDPOINT")
    kind = _patient(type(template), backoff, endpoint or "https://huggingface.co")
    hooks = template.event_hooks
    disable_progress_bars()
    set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=_timeout(template)))
    try:
        yield HfApi(endpoint=endpoint)
    finally:
        set_client_factory(default_client_factory)


def _timeout(template: Any) -> Any:
    return type(template.timeout)(ANSWER_S, connect=CONNECT_S, pool=None)


def _patient(base: type[Any], backoff: Backoff, endpoint: str) -> type[Any]:
    """Return the client's class, whose `send` tries again what may be tried again."""

    class PatientClient(base):  # type: ignore[misc]
        answered = False

        def build_request(self, method: str, url: Any, **given: Any) -> Any:
            request = super().build_request(method, url, **given)
            body = given.get("data") or given.get("content")
            if body is not None and hasattr(body, "seek"):
                begin = body.tell()
                request.extensions["rewind"] = lambda: body.seek(begin)
            return request

        def send(self, request: Any, **options: Any) -> Any:
            if request.url.path == _BY_THE_WAY:
                return super().send(request, **options)
            tried = 0
            while True:
                tried += 1
                if "rewind" in request.extensions:
                    request.extensions["rewind"]()
                answer, what, after = _attempt(super().send, request, options)
                if not what:
                    type(self).answered = True
                    return answer
                if request.method == "POST" and _COMMIT.search(request.url.path):
                    raise UnansweredError(what, after)
                refused = "ConnectError" in what and not self.answered and tried >= _FIRST_CONTACT_TRIES
                if refused or not backoff.wait(tried, _named(request, what), after):
                    raise _given_up(endpoint, what, tried, after)

    return PatientClient


def _attempt(send: Callable[..., Any], request: Any, options: dict[str, Any]) -> tuple[Any, str, str | None]:
    """Return the answer, or what speaks for another try with the `Retry-After` that came with it."""
    try:
        answer = send(request, **options)
    except Exception as error:
        if not _is_transport(error):
            raise
        return None, f"{type(error).__name__}: {error}".rstrip(": "), None
    if not transient_status(answer.status_code):
        return answer, "", None
    answer.close()
    limit = _RATE_LIMIT.search(answer.headers.get("ratelimit", ""))
    after = answer.headers.get("retry-after") or (limit.group(1) if limit else None)
    return None, f"HTTP {answer.status_code}", after


def _is_transport(error: Exception) -> bool:
    """Say whether the network has failed. The client's HTTP library is httpx2 today, and was httpx."""
    return any(cls.__name__ == "TransportError" for cls in type(error).__mro__)


def _named(request: Any, what: str) -> str:
    return f"{request.method} {request.url.path}: {what}"


def _given_up(endpoint: str, what: str, tried: int, after: str | None) -> StageError:
    if "ConnectError" in what or "ConnectTimeout" in what:
        return StageError(f"the Hub at {endpoint} can't be reached: {what.partition(': ')[2] or what}",
                          fix="run again: what was uploaded is kept")  # fmt: skip
    asked = f" and asks to wait {after} s" if after else ""
    return StageError(f"the Hub responded with {what}{asked}; gave up after {tried} attempts",
                      fix="run again later: what was uploaded is kept")  # fmt: skip
