"""A Hugging Face Hub on loopback that speaks the Hub's HTTP protocol to its real client.

    python -m deploy_runner.local.hub --root DIR        prints {"url": …}, serves until stdin ends

    with LocalHub(Path("hub")) as hub:
        HfApi(endpoint=hub.url, token="any").create_repo("me/model")

Repositories, atomic commits, `parent_commit` conflicts, LFS (basic and multipart), branches, tags,
pull requests, private repositories and downloads with ranges. No Xet: clients need
HF_HUB_DISABLE_XET=1.

The module is long because one class answers the whole protocol, a short method a route; what is
kept is in `hub_state`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .hub_state import Commit, Entry, HubError, HubState, Repo, wants_lfs

__all__ = ["LocalHub", "main"]

_PART_BYTES = 16 * 1024 * 1024
_MULTIPART_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 1 << 20
_KINDS = {"models": "models", "datasets": "datasets", "spaces": "spaces"}


class LocalHub:
    """A Hub in a thread of this process; `requests` lists the methods and paths it answered."""

    def __init__(self, root: Path, *, port: int = 0, token: str | None = None) -> None:
        self.state = HubState(root)
        self.requests: list[str] = []
        root.mkdir(parents=True, exist_ok=True)
        handler = type("Handler", (_Handler,), {"hub": self, "token": token})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Return the address, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


_ROUTES: list[tuple[str, re.Pattern[str], str]] = []


def _route(method: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    expanded = pattern.replace("{repo}", r"(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+(?:/[^/]+)?)")

    def register(function: Callable[..., None]) -> Callable[..., None]:
        _ROUTES.append((method, re.compile(expanded + r"\Z"), function.__name__))
        return function

    return register


class _Handler(BaseHTTPRequestHandler):
    """One request. Paths are matched in the order of the methods below."""

    hub: LocalHub
    token: str | None
    protocol_version = "HTTP/1.1"
    server_version = "local-hub"

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

    # Plumbing --------------------------------------------------------------------------------

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
        import io

        buffer = io.BytesIO()
        self._body_to(buffer)
        return buffer.getvalue()

    def _json_body(self) -> dict[str, Any]:
        try:
            value = json.loads(self._body() or b"{}")
        except ValueError:
            raise HubError(400, "The request's body is not JSON") from None
        return value if isinstance(value, dict) else {}

    def _authorised(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        return bool(given) if self.token is None else given == self.token

    def _require_token(self) -> None:
        if not self._authorised():
            raise HubError(401, "Invalid username or password.")

    def _repo(self, kind: str, repo: str) -> Repo:
        found = self.hub.state.repo(_KINDS[kind], repo)
        if found.private and not self._authorised():
            raise HubError(401, "Repository not found", "RepoNotFound")
        return found

    # Who and what ----------------------------------------------------------------------------

    @_route("GET", "/api/whoami-v2")
    def _whoami(self) -> None:
        self._require_token()
        access = {"accessToken": {"displayName": "local", "role": "write"}}
        self._json({"type": "user", "name": "local", "orgs": [], "auth": access})

    @_route("POST", "/api/validate-yaml")
    def _validate_yaml(self) -> None:
        import yaml

        content = str(self._json_body().get("content", ""))
        block = re.match(r"\s*---\n(.*?)\n---", content, re.DOTALL)
        errors: list[dict[str, str]] = []
        try:
            value = yaml.safe_load(block.group(1)) if block else {}
            if not isinstance(value, dict):
                errors.append({"message": "The metadata is not a mapping"})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        self._json({"errors": errors, "warnings": []}, status=400 if errors else 200)

    @_route("POST", "/api/repos/create")
    def _create(self) -> None:
        self._require_token()
        body = self._json_body()
        repo_id = f"{body.get('organization') or 'local'}/{body.get('name', '')}"
        private = body.get("visibility") == "private" or bool(body.get("private"))
        kind = f"{body.get('type', 'model')}s"
        if kind not in _KINDS:
            raise HubError(400, f"Unknown type {kind!r}")
        url = f"{self.hub.url}/{'' if kind == 'models' else f'{kind}/'}{repo_id}"
        try:
            self.hub.state.create(kind, repo_id, private=private)
        except HubError as error:
            error.extra["url"] = url
            raise
        self._json({"url": url, "name": repo_id, "id": repo_id})

    @_route("DELETE", "/api/repos/delete")
    def _delete(self) -> None:
        self._require_token()
        body = self._json_body()
        organization = body.get("organization") or "local"
        self.hub.state.delete(f"{body.get('type', 'model')}s", f"{organization}/{body.get('name', '')}")
        self._send(b"OK", "text/plain")

    # Uploads ---------------------------------------------------------------------------------

    @_route("POST", "/api/{repo}/preupload/(?P<revision>.+)")
    def _preupload(self, kind: str, repo: str, revision: str) -> None:
        self._require_token()
        body = self._json_body()
        commit = self.hub.state.resolve(self._repo(kind, repo), revision)
        answers = []
        for file in body.get("files", []):
            lfs = wants_lfs(file["path"], int(file["size"]))
            answer = {
                "path": file["path"],
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": False,
            }
            if (known := commit.files.get(file["path"])) is not None:
                answer["oid"] = known.lfs or known.oid
            answers.append(answer)
        self._json({"files": answers})

    @_route("POST", r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def _lfs_batch(self, repo: str, kind: str = "models") -> None:
        self._require_token()
        body = self._json_body()
        self._repo(kind, repo)
        multipart = "multipart" in body.get("transfers", [])
        objects = [self._lfs_object(o["oid"], int(o["size"]), multipart) for o in body["objects"]]
        large = multipart and any(int(o["size"]) > _MULTIPART_BYTES for o in body["objects"])
        self._json({"transfer": "multipart" if large else "basic", "objects": objects})

    def _lfs_object(self, oid: str, size: int, multipart: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if self.hub.state.lfs_path(oid).exists():
            return answer
        href = f"{self.hub.url}/_lfs/{oid}"
        upload: dict[str, Any] = {"href": href}
        if multipart and size > _MULTIPART_BYTES:
            count = -(-size // _PART_BYTES)
            parts = {str(n): f"{href}/part/{n}" for n in range(1, count + 1)}
            upload = {
                "href": f"{href}/complete",
                "header": {"chunk_size": str(_PART_BYTES), **parts},
            }
        answer["actions"] = {"upload": upload, "verify": {"href": f"{href}/verify"}}
        return answer

    @_route("PUT", r"/_lfs/(?P<oid>\w+)(?:/part/(?P<part>\d+))?")
    def _lfs_put(self, oid: str, part: str = "") -> None:
        state = self.hub.state
        final = state.lfs_path(oid)
        incoming = state.root / "incoming" / (f"{oid}.{part}" if part else f"{oid}.{threading.get_ident()}")
        incoming.parent.mkdir(parents=True, exist_ok=True)
        with incoming.open("wb") as file:
            self._body_to(file)
        with incoming.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not part:
            self._place(incoming, final, oid, digest)
        self._send(b"", "text/plain", headers={"ETag": f'"{digest}"'})

    def _place(self, incoming: Path, final: Path, oid: str, digest: str) -> None:
        if digest != oid:
            incoming.unlink()
            raise HubError(400, f"The content has the SHA-256 {digest}, not {oid}")
        final.parent.mkdir(parents=True, exist_ok=True)
        incoming.replace(final)

    @_route("POST", r"/_lfs/(?P<oid>\w+)/complete")
    def _lfs_complete(self, oid: str) -> None:
        body = self._json_body()
        folder = self.hub.state.root / "incoming"
        whole, digest = folder / f"{oid}.whole", hashlib.sha256()
        with whole.open("wb") as target:
            for part in sorted(body["parts"], key=lambda p: int(p["partNumber"])):
                place = folder / f"{oid}.{part['partNumber']}"
                with place.open("rb") as source:
                    while chunk := source.read(_CHUNK_BYTES):
                        target.write(chunk)
                        digest.update(chunk)
        self._place(whole, self.hub.state.lfs_path(oid), oid, digest.hexdigest())
        for part in body["parts"]:
            (folder / f"{oid}.{part['partNumber']}").unlink()
        self._json({"success": True})

    @_route("POST", r"/_lfs/(?P<oid>\w+)/verify")
    def _lfs_verify(self, oid: str) -> None:
        body, path = self._json_body(), self.hub.state.lfs_path(oid)
        if not path.exists() or path.stat().st_size != int(body["size"]):
            raise HubError(404, f"LFS object {oid} is not here")
        self._json({"message": "ok"})

    @_route("POST", "/api/{repo}/commit/(?P<revision>.+)")
    def _commit(self, kind: str, repo: str, revision: str) -> None:
        self._require_token()
        try:
            operations = [json.loads(line) for line in self._body().splitlines() if line.strip()]
        except ValueError:
            raise HubError(400, "The commit is not ndjson") from None
        create = self._query.get("create_pr", ["0"])[0] == "1"
        found = self._repo(kind, repo)
        made, number = self.hub.state.commit(found, revision, operations, create_pull=create)
        answer: dict[str, Any] = {"success": True, "commitOid": made.id}
        answer["commitUrl"] = f"{self.hub.url}/{repo}/commit/{made.id}"
        if number:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{number}"
        self._json(answer)

    # References ------------------------------------------------------------------------------

    @_route("GET", "/api/{repo}/refs")
    def _refs(self, kind: str, repo: str) -> None:
        found = self._repo(kind, repo)
        groups = (("branches", "refs/heads/", found.branches), ("tags", "refs/tags/", found.tags))
        answer: dict[str, Any] = {
            title: [{"name": n, "ref": f"{prefix}{n}", "targetCommit": c} for n, c in known.items()]
            for title, prefix, known in groups
        }
        answer["converts"] = []
        if self._query.get("include_prs"):
            answer["pullRequests"] = [
                {"name": n.removeprefix("refs/"), "ref": n, "targetCommit": c} for n, c in found.pulls.items()
            ]
        self._json(answer)

    @_route("POST", "/api/{repo}/(?P<group>tag|branch)/(?P<name>.+)")
    def _make_reference(self, kind: str, repo: str, group: str, name: str) -> None:
        self._require_token()
        body = self._json_body()
        found = self._repo(kind, repo)
        start = name if group == "tag" else body.get("startingPoint") or "main"
        target = self.hub.state.resolve(found, start).id
        self.hub.state.set_reference(found, group, body["tag"] if group == "tag" else name, target)
        self._json({"success": True})

    @_route("DELETE", "/api/{repo}/(?P<group>tag|branch)/(?P<name>.+)")
    def _remove_reference(self, kind: str, repo: str, group: str, name: str) -> None:
        self._require_token()
        self.hub.state.set_reference(self._repo(kind, repo), group, name, None)
        self._json({"success": True})

    # Reading ---------------------------------------------------------------------------------

    @_route("GET", "/api/{repo}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def _tree(self, kind: str, repo: str, revision: str, path: str = "") -> None:
        commit = self.hub.state.resolve(self._repo(kind, repo), revision)
        recursive = self._query.get("recursive", ["false"])[0].lower() in ("1", "true")
        prefix = f"{path.rstrip('/')}/" if path else ""
        rows: dict[str, dict[str, Any]] = {}
        for name, entry in commit.files.items():
            if not name.startswith(prefix):
                continue
            head, slash, _ = name.removeprefix(prefix).partition("/")
            if slash:
                folder = f"{prefix}{head}"
                rows.setdefault(folder, {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0})
            if recursive or not slash:
                rows[name] = {"type": "file", "path": name, **_described(entry)}
        self._json([rows[name] for name in sorted(rows)])

    @_route("POST", "/api/{repo}/paths-info/(?P<revision>.+)")
    def _paths_info(self, kind: str, repo: str, revision: str) -> None:
        commit = self.hub.state.resolve(self._repo(kind, repo), revision)
        raw = self._body().decode()
        wanted = json.loads(raw).get("paths", []) if raw.startswith("{") else parse_qs(raw).get("paths", [])
        self._json([
            {"type": "file", "path": name, **_described(commit.files[name])}
            for name in wanted
            if name in commit.files
        ])  # fmt: skip

    @_route("GET", "/api/{repo}/commits/(?P<revision>.+)")
    def _commits(self, kind: str, repo: str, revision: str) -> None:
        history = self.hub.state.history(self._repo(kind, repo), revision)
        authors = [{"user": "local"}]
        self._json(
            [
                {"id": c.id, "title": c.title, "message": c.message, "date": c.date, "authors": authors}
                for c in history
            ]
        )

    @_route("GET", "/api/{repo}(?:/revision/(?P<revision>.+))?")
    def _info(self, kind: str, repo: str, revision: str = "main") -> None:
        found = self._repo(kind, repo)
        commit = self.hub.state.resolve(found, revision)
        siblings = []
        for name, entry in sorted(commit.files.items()):
            row: dict[str, Any] = {"rfilename": name}
            if self._query.get("blobs"):
                described = _described(entry)
                row |= {"size": entry.size, "blobId": entry.oid}
                if entry.lfs:
                    row["lfs"] = {**described["lfs"], "sha256": entry.lfs}
            siblings.append(row)
        self._json({
            "_id": hashlib.sha256(repo.encode()).hexdigest()[:24], "id": repo, "modelId": repo,
            "author": repo.split("/")[0],
            "sha": commit.id, "private": found.private, "disabled": False, "gated": False,
            "lastModified": commit.date, "createdAt": commit.date, "downloads": 0, "likes": 0,
            "tags": [], "siblings": siblings,
        })  # fmt: skip

    @_route(
        "GET",
        r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+|refs/pr/\d+)/(?P<path>.+)",
    )
    def _resolve(self, repo: str, revision: str, path: str, kind: str = "models") -> None:
        commit = self.hub.state.resolve(self._repo(kind, repo), revision)
        entry = commit.files.get(path)
        if entry is None:
            raise HubError(404, f"{path} does not exist in {revision}", "EntryNotFound")
        self._send_file(commit, path, entry)

    def _send_file(self, commit: Commit, path: str, entry: Entry) -> None:
        start, end = self._range(entry.size)
        partial = (start, end) != (0, entry.size)
        headers = {
            "X-Repo-Commit": commit.id,
            "ETag": f'"{entry.lfs or entry.oid}"',
            "Accept-Ranges": "bytes",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
        }
        if entry.lfs:
            headers |= {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.lfs}"'}
        if partial:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
        self.send_response(206 if partial else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - start))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with self.hub.state.content_path(entry).open("rb") as file:
            file.seek(start)
            left = end - start
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                self.wfile.write(chunk)
                left -= len(chunk)

    def _range(self, size: int) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not found:
            return 0, size
        start = int(found.group(1))
        end = int(found.group(2)) + 1 if found.group(2) else size
        if start >= size:
            raise HubError(416, "The range is outside of the file")
        return start, min(end, size)


def _described(entry: Entry) -> dict[str, Any]:
    answer: dict[str, Any] = {"oid": entry.oid, "size": entry.size}
    if entry.lfs:
        answer["lfs"] = {
            "oid": entry.lfs,
            "size": entry.size,
            "pointerSize": 120 + len(str(entry.size)),
        }
    return answer


def main(argv: list[str] | None = None) -> int:
    """Serve until standard input ends; print the address as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m deploy_runner.local.hub", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    args = parser.parse_args(argv)
    try:
        running = LocalHub(args.root, port=args.port)
    except OSError as error:
        print(f"error: port {args.port} can't be used: {os.strerror(error.errno or 0)}", file=sys.stderr)  # noqa: T201
        return 2
    with running as hub:
        print(json.dumps({"url": hub.url}), flush=True)  # noqa: T201
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
