"""What we want a repository to hold, what it holds, and whose that is.

Beside the files lies `deploy-runner.json`, which lists them with their digests: by it the next push
knows which files are its own, whichever way they have come into the branch (a commit, a merged pull
request, a squash), and what somebody else has changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy_runner.sdk import sha256_file

MANIFEST = "deploy-runner.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of ours: where it is, its size in bytes and its SHA-256."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a commit has to do; `foreign` are files that somebody else has put in our places."""

    add: Sequence[str]
    delete: Sequence[str]
    foreign: Sequence[str]

    @property
    def empty(self) -> bool:
        """Say whether there is nothing to do."""
        return not (self.add or self.delete)


def describe(files: Mapping[str, Path], known: Mapping[Path, str]) -> dict[str, Wanted]:
    """Return files with size and digest; `known` holds the digests that were computed already."""
    return {
        name: Wanted(path, path.stat().st_size, known.get(path) or sha256_file(path))
        for name, path in sorted(files.items())
    }


def manifest(files: Mapping[str, Wanted]) -> bytes:
    """Return the text of `deploy-runner.json` for these files."""
    rows = {name: {"sha256": file.sha256, "size": file.size} for name, file in sorted(files.items())}
    return (json.dumps({"version": _VERSION, "files": rows}, indent=2) + "\n").encode()


def read_manifest(data: bytes | None) -> dict[str, str]:
    """Return path → SHA-256 of a manifest; nothing where it is none of ours."""
    try:
        value = json.loads(data or b"{}")
        if value.get("version") != _VERSION:
            return {}
        return {str(name): str(row["sha256"]) for name, row in value["files"].items()}
    except (ValueError, TypeError, AttributeError, KeyError):
        return {}


class Revision:
    """A repository at one commit, `sha`; it is read when it is asked for, and only once."""

    def __init__(self, api: Any, repo: str, sha: str) -> None:
        self._api = api
        self._repo = repo
        self.sha = sha
        self._infos: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._bytes: dict[str, bytes | None] = {}

    def info(self, paths: Sequence[str]) -> dict[str, Any]:
        """Return what the Hub says about those of these paths that are files there."""
        missing = [path for path in paths if path not in self._infos]
        if missing:
            found = self._api.get_paths_info(self._repo, missing, revision=self.sha)
            self._infos |= dict.fromkeys(missing)
            self._infos |= {row.path: row for row in found if hasattr(row, "blob_id")}
        return {path: self._infos[path] for path in paths if self._infos[path] is not None}

    def identity(self, path: str) -> str:
        """Return what changes with a file's content: git's id of it, or nothing if it doesn't exist."""
        row = self.info([path]).get(path)
        return str(row.blob_id) if row is not None else ""

    def holds(self, path: str, wanted: Wanted) -> bool:
        """Say whether a file there has our content."""
        row = self.info([path]).get(path)
        if row is None or row.size != wanted.size:
            return False
        if row.lfs is not None:
            return bool(row.lfs.sha256 == wanted.sha256)
        return bool(row.blob_id == _blob_id(wanted.path))

    def digest(self, path: str) -> str:
        """Return the SHA-256 of a file there; small files are downloaded for it."""
        row = self.info([path]).get(path)
        if row is None:
            return ""
        if row.lfs is not None:
            return str(row.lfs.sha256)
        return hashlib.sha256(self.read(path) or b"").hexdigest()

    def read(self, path: str) -> bytes | None:
        """Return the content of a small file, or None if it doesn't exist."""
        if path not in self._bytes:
            self._bytes[path] = _download(self._api, self._repo, path, self.sha)
        return self._bytes[path]

    def known(self) -> dict[str, str]:
        """Return path → SHA-256 of what a push has added."""
        return read_manifest(self.read(MANIFEST)) if self.info([MANIFEST]) else {}


def decide(there: Revision, files: Mapping[str, Wanted]) -> Decision:
    """Compare a revision with what is wanted; see Decision."""
    there.info([*files, MANIFEST])
    add = [path for path, wanted in files.items() if not there.holds(path, wanted)]
    if not add:
        return Decision((), (), ())
    known = there.known()
    stale = [path for path in known if path not in files]
    there.info(stale)
    ours = {path for path in (*add, *stale) if there.digest(path) in ("", known.get(path))}
    ours.add(MANIFEST)
    delete = [path for path in stale if path in ours and there.identity(path)]
    return Decision(add, delete, [path for path in add if path not in ours])


def _blob_id(path: Path) -> str:
    """Return git's id of a file's content: SHA-1 of `blob LENGTH\\0` and the bytes."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _download(api: Any, repo: str, path: str, revision: str) -> bytes | None:
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = f"{api.endpoint}/{repo}/resolve/{revision}/{quote(path)}"
    answer = get_session().get(url, headers=build_hf_headers(token=api.token))
    if answer.status_code == 404:
        return None
    hf_raise_for_status(answer)
    return bytes(answer.content)
