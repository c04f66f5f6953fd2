"""What a local Hub keeps on disk: repositories, commits, references, blobs.

    blobs/SHA1          content of regular files, by git's blob id
    lfs/SHA256          content of large files
    repos/TYPE/ID/      repo.json (visibility, references) and commits/ID.json

A commit's id is the SHA-1 of its content and parent, so the same pushes give the same ids. Every
file is replaced atomically: a killed server loses nothing that it had answered for.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..store.files import write_atomic

__all__ = ["Commit", "Entry", "HubError", "HubState", "Pull", "Repo", "git_blob_id"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?\Z")


class HubError(Exception):
    """A refusal: HTTP status, the Hub's error code, and its message."""

    def __init__(self, status: int, message: str, code: str = "", **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.extra = extra


def git_blob_id(data: bytes) -> str:
    """Return git's id of a file's content: SHA-1 of `blob LENGTH\\0` and the bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a commit: git's blob id, size, and the SHA-256 where it is an LFS file."""

    oid: str
    size: int
    lfs: str = ""


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit: its files by path."""

    id: str
    parent: str
    title: str
    message: str
    date: str
    files: Mapping[str, Entry]


@dataclass(slots=True)
class Pull:
    """A pull request to the branch `base`: its head, and the commit that it was merged by."""

    number: int
    title: str
    author: str
    base: str
    start: str
    head: str
    date: str
    status: str = "open"
    merged: str = ""


@dataclass(slots=True)
class Repo:
    """A repository's references and visibility."""

    kind: str
    id: str
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, Pull] = field(default_factory=dict)


class HubState:
    """All repositories under one folder. Every method is safe to call from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()

    def _folder(self, kind: str, repo_id: str) -> Path:
        if not _ID.match(repo_id) or ".." in repo_id:
            raise HubError(400, f"Invalid repository id {repo_id!r}")
        return self.root / "repos" / kind / repo_id

    def create(self, kind: str, repo_id: str, *, private: bool) -> Repo:
        """Make a repository with an empty first commit; HubError 409 where it exists."""
        with self.lock:
            if (self._folder(kind, repo_id) / "repo.json").exists():
                raise HubError(409, "You already created this model repo", url=repo_id)
            repo = Repo(kind, repo_id, private)
            first = self._write_commit(repo, "", "initial commit", "", {})
            repo.branches["main"] = first.id
            self._save(repo)
            return repo

    def delete(self, kind: str, repo_id: str) -> None:
        """Remove a repository."""
        import shutil

        with self.lock:
            self.repo(kind, repo_id)
            shutil.rmtree(self._folder(kind, repo_id))

    def repo(self, kind: str, repo_id: str, *, anonymous: bool = False) -> Repo:
        """Return a repository; HubError 404 where there is none, 401 to those who are nobody."""
        try:
            data = json.loads((self._folder(kind, repo_id) / "repo.json").read_bytes())
        except (OSError, ValueError):
            status = 401 if anonymous else 404
            raise HubError(status, "Repository not found", "RepoNotFound") from None
        pulls = {ref: Pull(**pull) for ref, pull in data.pop("pulls").items()}
        return Repo(kind, repo_id, **data, pulls=pulls)

    def _save(self, repo: Repo) -> None:
        data = {"private": repo.private, "branches": repo.branches, "tags": repo.tags,
                "pulls": {ref: asdict(pull) for ref, pull in repo.pulls.items()}}  # fmt: skip
        write_atomic(self._folder(repo.kind, repo.id) / "repo.json", json.dumps(data).encode())

    def resolve(self, repo: Repo, revision: str) -> Commit:
        """Return the commit that a branch, tag, pull request or commit id names."""
        id_ = (
            repo.branches.get(revision.removeprefix("refs/heads/"))
            or repo.tags.get(revision.removeprefix("refs/tags/"))
            or (repo.pulls[revision].head if revision in repo.pulls else "")
            or revision
        )
        path = self._folder(repo.kind, repo.id) / "commits" / f"{id_}.json"
        if not re.fullmatch(r"[0-9a-f]{40}", id_) or not path.exists():
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self._read_commit(path, id_)

    @staticmethod
    def _read_commit(path: Path, id_: str) -> Commit:
        data = json.loads(path.read_bytes())
        files = {name: Entry(*entry) for name, entry in data.pop("files").items()}
        return Commit(id_, files=files, **data)

    def history(self, repo: Repo, revision: str) -> list[Commit]:
        """Return a commit and its ancestors, the newest first."""
        commits = [self.resolve(repo, revision)]
        while commits[-1].parent:
            commits.append(self.resolve(repo, commits[-1].parent))
        return commits

    def commit(
        self,
        repo: Repo,
        branch: str,
        operations: list[dict[str, Any]],
        *,
        create_pull: bool = False,
        author: str = "local",
    ) -> tuple[Commit, int]:
        """Publish all operations as one commit, or nothing; return it and the pull's number."""
        with self.lock:
            repo = self.repo(repo.kind, repo.id)
            head = self.resolve(repo, branch)
            header = next((o["value"] for o in operations if o.get("key") == "header"), None)
            if header is None or not header.get("summary"):
                raise HubError(400, "Commit message is missing")
            parent = header.get("parentCommit")
            if parent and parent != head.id:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for operation in operations:
                self._apply(files, operation)
            made = self._write_commit(repo, head.id, header["summary"], header.get("description", ""), files)
            number = 0
            if create_pull:
                number = self._add_pull(repo, header["summary"], author, branch, head.id, made.id)
            elif branch in repo.branches:
                repo.branches[branch] = made.id
            elif branch in repo.pulls:
                repo.pulls[branch].head = made.id
            else:
                raise HubError(400, f"{branch} is not a branch")
            self._save(repo)
            return made, number

    def _add_pull(self, repo: Repo, title: str, author: str, base: str, start: str, head: str) -> int:
        number = len(repo.pulls) + 1
        repo.pulls[f"refs/pr/{number}"] = Pull(number, title, author, base, start, head, _now())
        return number

    def open_pull(self, repo: Repo, title: str, author: str) -> int:
        """Open an empty pull request to main; return its number."""
        with self.lock:
            repo = self.repo(repo.kind, repo.id)
            head = repo.branches["main"]
            number = self._add_pull(repo, title, author, "main", head, head)
            self._save(repo)
            return number

    def pull(self, repo: Repo, number: int) -> Pull:
        """Return a pull request; HubError 404 where there is none."""
        if f"refs/pr/{number}" not in repo.pulls:
            raise HubError(404, f"Discussion {number} not found")
        return repo.pulls[f"refs/pr/{number}"]

    def set_pull_status(self, repo: Repo, number: int, status: str) -> Pull:
        """Close a pull request, or open it again."""
        with self.lock:
            repo = self.repo(repo.kind, repo.id)
            pull = self.pull(repo, number)
            pull.status = status
            self._save(repo)
            return pull

    def merge(self, repo: Repo, number: int) -> None:
        """Merge a pull request as one commit; HubError 409 where both sides have changed a file."""
        with self.lock:
            repo = self.repo(repo.kind, repo.id)
            pull = self.pull(repo, number)
            if pull.status != "open":
                raise HubError(400, f"This pull request is {pull.status}")
            start, theirs = self.resolve(repo, pull.start).files, self.resolve(repo, pull.head).files
            files = dict(self.resolve(repo, pull.base).files)
            for path in {*start, *theirs}:
                if start.get(path) == theirs.get(path):
                    continue
                if files.get(path) not in (start.get(path), theirs.get(path)):
                    raise HubError(409, f"There is a conflict about {path}")
                files.pop(path, None)
                if path in theirs:
                    files[path] = theirs[path]
            title = f"{pull.title} (#{number})"
            made = self._write_commit(repo, repo.branches[pull.base], title, "", files)
            repo.branches[pull.base] = pull.merged = made.id
            pull.status = "merged"
            self._save(repo)

    def _apply(self, files: dict[str, Entry], operation: Mapping[str, Any]) -> None:
        key, value = operation.get("key"), operation.get("value", {})
        if key == "header":
            return
        path = value.get("path", "")
        if not path or path.startswith("/") or ".." in path.split("/"):
            raise HubError(400, f"Invalid path {path!r}")
        if key == "file":
            files[path] = self._put_blob(_decode(value))
        elif key == "lfsFile":
            files[path] = self._lfs_entry(value)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise HubError(404, f"{path} does not exist", "EntryNotFound")
        elif key == "deletedFolder":
            for name in [n for n in files if n.startswith(f"{path.rstrip('/')}/")]:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation {key!r}")

    def _put_blob(self, data: bytes) -> Entry:
        oid = git_blob_id(data)
        path = self.root / "blobs" / oid
        if not path.exists():
            write_atomic(path, data)
        return Entry(oid, len(data))

    def _lfs_entry(self, value: Mapping[str, Any]) -> Entry:
        oid = str(value.get("oid", ""))
        path = self.lfs_path(oid)
        if not path.exists():
            raise HubError(400, f"LFS object {oid} has not been uploaded")
        size = path.stat().st_size
        if value.get("size", size) != size:
            raise HubError(400, f"LFS object {oid} has {size} bytes")
        pointer = (f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n").encode()
        return Entry(git_blob_id(pointer), size, oid)

    def lfs_path(self, oid: str) -> Path:
        """Return where an LFS object is, or would be."""
        if not re.fullmatch(r"[0-9a-f]{64}", oid):
            raise HubError(400, f"Invalid LFS oid {oid!r}")
        return self.root / "lfs" / oid

    def content_path(self, entry: Entry) -> Path:
        """Return the file that holds an entry's content."""
        return self.lfs_path(entry.lfs) if entry.lfs else self.root / "blobs" / entry.oid

    def _write_commit(
        self, repo: Repo, parent: str, title: str, message: str, files: Mapping[str, Entry]
    ) -> Commit:
        rows = {name: [e.oid, e.size, e.lfs] for name, e in sorted(files.items())}
        content = {"parent": parent, "title": title, "message": message, "files": rows}
        text = json.dumps([repo.kind, repo.id, content], sort_keys=True)
        id_ = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        path = self._folder(repo.kind, repo.id) / "commits" / f"{id_}.json"
        if not path.exists():
            write_atomic(path, json.dumps({**content, "date": _now()}).encode())
        return self._read_commit(path, id_)

    def set_reference(self, repo: Repo, group: str, name: str, target: str | None) -> None:
        """Make, or with None remove, a branch or a tag."""
        with self.lock:
            repo = self.repo(repo.kind, repo.id)
            known = repo.tags if group == "tag" else repo.branches
            if target is None:
                if known.pop(name, None) is None:
                    raise HubError(404, f"{group} {name} does not exist", "RevisionNotFound")
            elif name in known:
                what = "Tag reference" if group == "tag" else "Reference"
                raise HubError(409, f"{what} exists already")
            else:
                known[name] = target
            self._save(repo)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def _decode(value: Mapping[str, Any]) -> bytes:
    import base64
    import binascii

    content = value.get("content", "")
    if value.get("encoding") != "base64":
        return str(content).encode()
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error:
        raise HubError(400, f"{value.get('path')}: not base64") from None
