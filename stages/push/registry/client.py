"""Ask a registry by the OCI distribution protocol, each request tried again by our policy.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urljoin

from deploy_runner.sdk import ConflictError, Context, StageError, first_line

from ..backoff import Backoff, transient_status
from ..converging import Service
from ..transcript import Transcript
from .login import Login, is_loopback
from .modelpack import MANIFEST

if TYPE_CHECKING:
    from requests import Response

__all__ = ["Body", "Registry", "registry_of", "said"]

_FIRST_CONTACT_TRIES = 3
_CONNECT_S, _ANSWER_S = 20, 120
_CHUNK_BYTES = 1 << 20
_ACCEPT = ", ".join(
    (MANIFEST, "application/vnd.oci.image.index.v1+json",
     "application/vnd.docker.distribution.manifest.v2+json",
     "application/vnd.docker.distribution.manifest.list.v2+json")
)  # fmt: skip
"""Without this a registry doesn't know an OCI manifest."""

Body = bytes | Callable[[], IO[bytes]] | None
"""What a request sends: bytes, or how to open a file, since each try reads it from its beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry(Service):
    """A repository of a registry. `name` is `HOST/REPOSITORY`, `actions` what its token may be used for."""

    session: Any
    login: Login
    url: str
    name: str
    repository: str
    actions: str
    contacted: list[bool] = field(default_factory=list)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return the answer to a request below the repository, or to a whole URL. Raises StageError."""
        for tried in itertools.count(1):
            answer, what, after = self.once(method, path, body, headers)
            if answer is not None:
                return answer
            self.wait(tried, f"{method} {path.partition('?')[0]}: {what}", after)
        raise AssertionError

    def once(
        self,
        method: str,
        path: str,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        *,
        stream: bool = False,
    ) -> tuple[Response | None, str, str | None]:
        """Return the answer, or what speaks for another try with the Retry-After that came with it."""
        import requests

        url = urljoin(f"{self.url}/", path)
        options = {"headers": dict(headers or {}), "timeout": (_CONNECT_S, _ANSWER_S), "stream": stream}
        try:
            answer = self._send(method, url, body, options)
            if answer.status_code == 401:
                scope = f"repository:{self.repository}:{self.actions}"
                if self.login.renew(self.session, answer, scope):
                    answer = self._send(method, url, body, options)
        except requests.exceptions.SSLError as error:
            raise StageError(f"{self.login.host} can't be trusted: {first_line(error)}") from error
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            return None, type(error).__name__, None
        self.contacted.append(True)
        if transient_status(answer.status_code):
            return None, f"HTTP {answer.status_code}", answer.headers.get("Retry-After")
        if answer.status_code in (401, 403):
            who = f"the user {self.login.user}" if self.login.user else "anonymous users"
            raise StageError(f"{self.name}: {who} may not {self.actions}: {said(answer)}",
                             fix=f"docker login {self.login.host}, or set username and password")  # fmt: skip
        return answer, "", None

    def _send(self, method: str, url: str, body: Body, options: Mapping[str, Any]) -> Response:
        if not callable(body):
            return self._request(method, url, data=body, **options)
        with body() as file:
            return self._request(method, url, data=file, **options)

    def _request(self, method: str, url: str, **options: Any) -> Response:
        found: Response = self.session.request(method, url, auth=self.login, **options)
        return found

    def wait(self, tried: int, what: str, after: str | None = None) -> None:
        """Wait for the next try. Raises StageError where it is to be given up."""
        never = not self.contacted and tried >= _FIRST_CONTACT_TRIES
        if never or not self.backoff.wait(tried, what, after):
            how = "can't be reached" if never else f"doesn't answer: gave up after {tried} tries"
            raise StageError(f"{self.login.host} {how}: {what}", fix="run again: what was uploaded is kept")

    def manifest(self, reference: str) -> tuple[bytes, str] | None:
        """Return a manifest by tag or `sha256:…`, and its digest in hexadecimal; None where there is none."""
        answer = self.ask("GET", f"manifests/{reference}", headers={"Accept": _ACCEPT})
        if answer.status_code == 404:
            return None
        self.expect(answer, 200)
        digest = hashlib.sha256(answer.content).hexdigest()
        if reference.startswith("sha256:") and reference != f"sha256:{digest}":
            raise ConflictError(f"{self.name}@{reference} has a different digest when read back: {digest}")
        return answer.content, digest

    def put_manifest(self, reference: str, manifest: bytes) -> None:
        """Put a manifest under a tag, and note it."""
        self.expect(self.ask("PUT", f"manifests/{reference}", manifest, {"Content-Type": MANIFEST}), 201)
        digest = hashlib.sha256(manifest).hexdigest()
        self.transcript.add("PutManifest", repository=self.repository, tag=reference, digest=digest)

    def tags(self) -> list[str]:
        """Return all tags."""
        found: list[str] = []
        path = "tags/list?n=1000"
        while path:
            answer = self.ask("GET", path)
            if answer.status_code == 404:
                return found
            self.expect(answer, 200)
            found += answer.json().get("tags") or []
            following = re.match(r'<([^>]+)>;\s*rel="?next"?', answer.headers.get("Link", ""))
            path = following.group(1) if following else ""
        return found

    def expect(self, answer: Response, *statuses: int) -> None:
        """Raise StageError for an answer with another status."""
        if answer.status_code not in statuses:
            method = answer.request.method
            raise StageError(
                f"{self.name}: {method} {answer.request.path_url.partition('?')[0]}: {said(answer)}"
            )

    def read_back(self, digest: str) -> str:
        """Return the SHA-256 of a blob's bytes, as they are downloaded."""
        import requests

        for tried in itertools.count(1):
            answer, what, after = self.once("GET", f"blobs/sha256:{digest}", stream=True)
            if answer is not None:
                self.expect(answer, 200)
                found = hashlib.sha256()
                try:
                    for chunk in answer.iter_content(_CHUNK_BYTES):
                        found.update(chunk)
                    return found.hexdigest()
                except requests.RequestException as error:
                    what = type(error).__name__
            self.wait(tried, f"GET blobs/sha256:{digest[:12]}…: {what}", after)
        raise AssertionError


def said(answer: Response | None) -> str:
    """Return what a refusal says: its status, and its reason where it gives one."""
    if answer is None:
        return "no answer"
    try:
        row = answer.json()["errors"][0]
        return f"HTTP {answer.status_code}: {row.get('message') or row.get('code')}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"HTTP {answer.status_code}"


@contextmanager
def registry_of(
    ctx: Context, backoff: Backoff, login: Login, repository: str, actions: str
) -> Iterator[Registry]:
    """Yield a repository of the login's host, over https unless that is this machine."""
    import requests

    scheme = "http" if is_loopback(login.host) else "https"
    with requests.Session() as session:
        session.headers["User-Agent"] = "deploy-runner"
        yield Registry(
            ctx=ctx, backoff=backoff, transcript=Transcript(), session=session, login=login, actions=actions,
            url=f"{scheme}://{login.host}/v2/{repository}", name=f"{login.host}/{repository}",
            repository=repository,
        )  # fmt: skip
