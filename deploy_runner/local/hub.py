"""A Hugging Face Hub on loopback that speaks the Hub's HTTP protocol to its real client.

    python -m deploy_runner.local.hub --root DIR        prints {"url": …}, serves until stdin ends

    with LocalHub(Path("hub")) as hub:
        HfApi(endpoint=hub.url, token="any").create_repo("me/model")

Repositories, atomic commits, `parent_commit` conflicts, LFS (basic and multipart), branches, tags,
pull requests, private repositories and downloads with ranges. No Xet: clients need
HF_HUB_DISABLE_XET=1.

A short method a route: HTTP itself is in `hub_http`, commits and pull requests are in `hub_pulls`, uploads of
large files in `hub_uploads`, rules in `hub_rules`; what is kept is in `hub_state`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote

from .hub_http import Account, route
from .hub_rules import eval_results, metadata_errors
from .hub_state import Commit, Entry, HubError, HubState
from .hub_uploads import UploadHandler

__all__ = ["Account", "LocalHub", "main"]

_CHUNK_BYTES = 1 << 20
_KINDS = ("models", "datasets", "spaces")


class LocalHub:
    """A Hub in a thread of this process; `requests` lists the methods and paths it answered.

    `accounts` are the tokens that it knows; without any, every token may do everything. `quota_bytes` is
    what all large files together may have; one of more than `multipart_bytes` goes in parts of a quarter.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int = 0,
        accounts: Mapping[str, Account] | None = None,
        quota_bytes: int | None = None,
        multipart_bytes: int = 64 << 20,
    ) -> None:
        self.state = HubState(root)
        self.requests: list[str] = []
        self.accounts = accounts or {}
        self.quota_bytes = quota_bytes
        self.multipart_bytes = multipart_bytes
        root.mkdir(parents=True, exist_ok=True)
        handler = type("Handler", (_Handler,), {"hub": self})
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


class _Handler(UploadHandler):
    """One request for anything but commits, pull requests and uploads."""

    # Who and what ----------------------------------------------------------------------------

    @route("GET", "/api/whoami-v2")
    def _whoami(self) -> None:
        account = self._require_token()
        orgs = [{"name": name} for name in account.orgs if name != "*"]
        access = {"accessToken": {"displayName": account.user, "role": account.role}}
        self._json({"type": "user", "name": account.user, "orgs": orgs, "auth": access})

    @route("POST", "/api/validate-yaml")
    def _validate_yaml(self) -> None:
        errors = metadata_errors(str(self._json_body().get("content", "")))
        rows = [{"message": message} for message in errors]
        self._json({"errors": rows, "warnings": []}, status=400 if errors else 200)

    @route("POST", "/api/repos/create")
    def _create(self) -> None:
        account = self._require_token()
        body = self._json_body()
        namespace = body.get("organization") or account.user
        self._require_write(namespace)
        repo_id = f"{namespace}/{body.get('name', '')}"
        private = body.get("visibility") == "private" or bool(body.get("private"))
        kind = f"{body.get('type', 'model')}s"
        if kind not in _KINDS:
            raise HubError(400, f"Unknown type {kind!r}")
        url = f"{self._url}/{'' if kind == 'models' else f'{kind}/'}{repo_id}"
        try:
            self.hub.state.create(kind, repo_id, private=private)
        except HubError as error:
            error.extra["url"] = url
            raise
        self._json({"url": url, "name": repo_id, "id": repo_id})

    @route("DELETE", "/api/repos/delete")
    def _delete(self) -> None:
        account = self._require_token()
        body = self._json_body()
        organization = body.get("organization") or account.user
        self._require_write(organization)
        self.hub.state.delete(f"{body.get('type', 'model')}s", f"{organization}/{body.get('name', '')}")
        self._send(b"OK", "text/plain")

    # References ------------------------------------------------------------------------------

    @route("GET", "/api/{repo}/refs")
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
                {"name": ref.removeprefix("refs/"), "ref": ref, "targetCommit": pull.head}
                for ref, pull in found.pulls.items()
            ]
        self._json(answer)

    @route("POST", "/api/{repo}/(?P<group>tag|branch)/(?P<name>.+)")
    def _make_reference(self, kind: str, repo: str, group: str, name: str) -> None:
        body = self._json_body()
        found = self._writable(kind, repo)
        start = name if group == "tag" else body.get("startingPoint") or "main"
        target = self.hub.state.resolve(found, start).id
        self.hub.state.set_reference(found, group, body["tag"] if group == "tag" else name, target)
        self._json({"success": True})

    @route("DELETE", "/api/{repo}/(?P<group>tag|branch)/(?P<name>.+)")
    def _remove_reference(self, kind: str, repo: str, group: str, name: str) -> None:
        self.hub.state.set_reference(self._writable(kind, repo), group, name, None)
        self._json({"success": True})

    # Reading ---------------------------------------------------------------------------------

    @route("GET", "/api/{repo}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
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

    @route("POST", "/api/{repo}/paths-info/(?P<revision>.+)")
    def _paths_info(self, kind: str, repo: str, revision: str) -> None:
        commit = self.hub.state.resolve(self._repo(kind, repo), revision)
        raw = self._body().decode()
        wanted = json.loads(raw).get("paths", []) if raw.startswith("{") else parse_qs(raw).get("paths", [])
        self._json([
            {"type": "file", "path": name, **_described(commit.files[name])}
            for name in wanted
            if name in commit.files
        ])  # fmt: skip

    @route("GET", "/api/{repo}/commits/(?P<revision>.+)")
    def _commits(self, kind: str, repo: str, revision: str) -> None:
        history = self.hub.state.history(self._repo(kind, repo), revision)
        authors = [{"user": "local"}]
        self._json(
            [
                {"id": c.id, "title": c.title, "message": c.message, "date": c.date, "authors": authors}
                for c in history
            ]
        )

    @route("GET", "/api/{repo}(?:/revision/(?P<revision>.+))?")
    def _info(self, kind: str, repo: str, revision: str = "main") -> None:
        found = self._repo(kind, repo)
        commit = self.hub.state.resolve(found, revision)
        if "evalResults" in self._query.get("expand", []):
            self._json({"id": repo, "evalResults": self._eval_results(commit)})
            return
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

    def _eval_results(self, commit: Commit) -> list[dict[str, Any]]:
        contents = {
            path: self.hub.state.content_path(entry).read_text("utf-8")
            for path, entry in sorted(commit.files.items())
            if re.fullmatch(r"\.eval_results/[^/]+\.ya?ml", path)
        }
        return [row for path, text in contents.items() for row in eval_results(path, text)]

    @route(
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
    parser.add_argument("--root", type=Path, required=True, help="the folder for its data")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    args = parser.parse_args(argv)
    try:
        running = LocalHub(args.root, port=args.port)
    except OSError as error:
        said = f"port {args.port} can't be used: {os.strerror(error.errno or 0)}"
        print(f"error: {said} (--port 0 takes a free port)", file=sys.stderr)  # noqa: T201
        return 2
    with running as hub:
        print(json.dumps({"url": hub.url}), flush=True)  # noqa: T201
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
