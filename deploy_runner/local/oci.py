"""An OCI registry on loopback that answers the requests of `push.oci` as the reference registry does.

    python -m deploy_runner.local.oci --root DIR        prints {"url": …}, serves until stdin ends

Blobs are uploaded by POST and PUT, manifests are put by tag and read by tag or digest; nothing is deleted.
The tests send the same requests to this and to Debian's docker-registry, and compare the answers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["LocalRegistry", "main"]

_CHUNK_BYTES = 1 << 20
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = rf"/v2/(?P<name>{_PART}(?:/{_PART})*)"
_ROUTES = [
    ("POST", re.compile(rf"{_NAME}/blobs/uploads/\Z"), "begin"),
    ("PUT", re.compile(rf"{_NAME}/blobs/uploads/(?P<upload>[0-9a-f-]+)\Z"), "complete"),
    ("GET", re.compile(rf"{_NAME}/blobs/sha256:(?P<digest>[0-9a-f]{{64}})\Z"), "blob"),
    ("GET", re.compile(rf"{_NAME}/manifests/(?P<reference>[\w.:-]+)\Z"), "manifest"),
    ("PUT", re.compile(rf"{_NAME}/manifests/(?P<reference>[\w.:-]+)\Z"), "put_manifest"),
    ("GET", re.compile(rf"{_NAME}/tags/list\Z"), "tags"),
]


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class LocalRegistry:
    """A registry in a thread of this process."""

    def __init__(self, root: Path, *, port: int = 0) -> None:
        self.root = root
        self.lock = threading.Lock()
        (root / "uploads").mkdir(parents=True, exist_ok=True)
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Return the address, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LocalRegistry:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def place(self, name: str, *parts: str) -> Path:
        """Return where something of a repository lies."""
        return self.root.joinpath("repositories", *name.split("/"), *(f"_{part}" for part in parts))


class _Handler(BaseHTTPRequestHandler):
    registry: LocalRegistry
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name upstream
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer GET."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer HEAD."""
        self._answer()

    def do_POST(self) -> None:
        """Answer POST."""
        self._answer()

    def do_PUT(self) -> None:
        """Answer PUT."""
        self._answer()

    def _answer(self) -> None:
        split = urlsplit(self.path)
        self._query = parse_qs(split.query)
        self._left = int(self.headers.get("Content-Length") or 0)
        method = "GET" if self.command == "HEAD" else self.command
        found = ((p.match(split.path), name) for known, p, name in _ROUTES if known == method)
        match, name = next(((m, n) for m, n in found if m), (None, ""))
        try:
            if match is None:
                raise _Refused(404, "UNSUPPORTED", "there is nothing here")
            getattr(self, f"_{name}")(**match.groupdict())
        except _Refused as error:
            row = {"code": error.code, "message": error.message}
            self._send(
                error.status, json.dumps({"errors": [row]}).encode(), "application/json; charset=utf-8"
            )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _send(self, status: int, body: bytes = b"", kind: str = "", **headers: str) -> None:
        while self._left:  # A body that isn't read would be taken for the next request.
            self._read()
        self.send_response(status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Length", str(len(body)))
        if kind:
            self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _own(self) -> str:
        """Return the address that it was asked at, as the reference registry names itself."""
        return f"http://{self.headers.get('Host') or urlsplit(self.registry.url).netloc}"

    def _read(self) -> bytes:
        data = self.rfile.read(min(self._left, _CHUNK_BYTES))
        if not data:
            raise ConnectionResetError
        self._left -= len(data)
        return data

    def _begin(self, name: str) -> None:
        upload = str(uuid.uuid4())
        (self.registry.root / "uploads" / upload).touch()
        self._send(202, Location=f"{self._own()}/v2/{name}/blobs/uploads/{upload}",
                   Range="0-0", Docker_Upload_UUID=upload)  # fmt: skip

    def _complete(self, name: str, upload: str) -> None:
        path = self.registry.root / "uploads" / upload
        if not path.is_file():
            raise _Refused(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        if path.stat().st_size:
            raise _Refused(404, "BLOB_UPLOAD_INVALID", "blob upload invalid")
        found = hashlib.sha256()
        with path.open("wb") as file:
            while self._left:
                data = self._read()
                found.update(data)
                file.write(data)
        digest = found.hexdigest()
        if self._query.get("digest", [""])[0] != f"sha256:{digest}":
            raise _Refused(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        place = self.registry.place(name, "blobs", digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
        self._send(201, Location=f"{self._own()}/v2/{name}/blobs/sha256:{digest}",
                   Docker_Content_Digest=f"sha256:{digest}")  # fmt: skip

    def _blob(self, name: str, digest: str) -> None:
        place = self.registry.place(name, "blobs", digest)
        if not place.is_file():
            raise _Refused(404, "BLOB_UNKNOWN", "blob unknown to registry")
        self.send_response(200)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Length", str(place.stat().st_size))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Docker-Content-Digest", f"sha256:{digest}")
        self.end_headers()
        if self.command != "HEAD":
            with place.open("rb") as file:
                while data := file.read(_CHUNK_BYTES):
                    self.wfile.write(data)

    def _put_manifest(self, name: str, reference: str) -> None:
        body = b""
        while self._left:
            body += self._read()
        digest = hashlib.sha256(body).hexdigest()
        try:
            said = json.loads(body)
            kind = said["mediaType"]
            needed = [row["digest"].removeprefix("sha256:") for row in (said["config"], *said["layers"])]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Refused(400, "MANIFEST_INVALID", "manifest invalid") from None
        if any(not self.registry.place(name, "blobs", blob).is_file() for blob in needed):
            raise _Refused(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
        if reference.startswith("sha256:") and reference != f"sha256:{digest}":
            raise _Refused(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        place = self.registry.place(name, "manifests", digest)
        with self.registry.lock:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(json.dumps({"kind": kind}).encode() + b"\n" + body)
            if not reference.startswith("sha256:"):
                tag = self.registry.place(name, "tags", reference)
                tag.parent.mkdir(parents=True, exist_ok=True)
                tag.write_text(digest)
        self._send(201, Location=f"{self._own()}/v2/{name}/manifests/sha256:{digest}",
                   Docker_Content_Digest=f"sha256:{digest}")  # fmt: skip

    def _manifest(self, name: str, reference: str) -> None:
        tag = self.registry.place(name, "tags", reference)
        digest = tag.read_text() if tag.is_file() else reference.removeprefix("sha256:")
        place = self.registry.place(name, "manifests", digest)
        if not place.is_file():
            raise _Refused(404, "MANIFEST_UNKNOWN", "manifest unknown")
        head, _, body = place.read_bytes().partition(b"\n")
        kind = json.loads(head)["kind"]
        if kind not in self.headers.get("Accept", ""):
            raise _Refused(
                404, "MANIFEST_UNKNOWN", "OCI manifest found, but accept header does not support it"
            )
        self._send(200, body, kind, Docker_Content_Digest=f"sha256:{digest}", Etag=f'"sha256:{digest}"')

    def _tags(self, name: str) -> None:
        tags = sorted(path.name[1:] for path in self.registry.place(name, "tags").glob("_*"))
        if not tags:
            raise _Refused(404, "NAME_UNKNOWN", "repository name not known to registry")
        self._send(200, json.dumps({"name": name, "tags": tags}).encode(), "application/json; charset=utf-8")


def main(argv: list[str] | None = None) -> int:
    """Serve until standard input ends; print the address as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m deploy_runner.local.oci", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the folder for its data")
    args = parser.parse_args(argv)
    with LocalRegistry(args.root) as registry:
        print(json.dumps({"url": registry.url}), flush=True)  # noqa: T201
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
