"""Folders as lists of files: how they are walked, and what their digest is of."""

from __future__ import annotations

import json
import os
import stat as stat_module
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..errors import StoreError
from ..types import Artifact

__all__ = ["Member", "folder_artifact", "manifest", "sha256_bytes", "stay_inside", "walk"]


class Member(NamedTuple):
    """One file of a folder artifact; `path` is relative, with `/`."""

    path: str
    digest: str
    size: int
    executable: bool


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes."""
    from hashlib import sha256

    return sha256(data).hexdigest()


def manifest(members: list[Member]) -> bytes:
    """Return the canonical JSON of a folder's files, whatever their order."""
    rows: list[Mapping[str, object]] = [
        {"digest": m.digest, "path": m.path, "size": m.size, "x": m.executable}
        for m in sorted(members, key=lambda m: m.path)
    ]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()


def folder_artifact(members: list[Member]) -> Artifact:
    """Return the artifact that a folder of these files is."""
    return Artifact(sha256_bytes(manifest(members)), "folder", sum(m.size for m in members))


def walk(folder: str) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield (relative path, path, stat) of the files below a folder, sorted.

    Raises StoreError for a link, a special file, or an unprintable name.
    """
    pending = [("", folder)]
    files: list[tuple[str, str, os.stat_result]] = []
    while pending:
        prefix, place = pending.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                if not entry.name.isprintable():
                    raise StoreError(f"{name!r} has a name that can't be stored")
                if entry.is_symlink():
                    raise StoreError(f"{entry.path} is a symbolic link inside a folder", fix="copy it there")
                st = entry.stat()
                if stat_module.S_ISDIR(st.st_mode):
                    pending.append((f"{name}/", entry.path))
                elif stat_module.S_ISREG(st.st_mode):
                    files.append((name, entry.path, st))
                else:
                    raise StoreError(f"{entry.path} is neither a file nor a folder")
    return iter(sorted(files))


def stay_inside(path: str, root: str) -> None:
    """Refuse a path that a link leads out of the project."""
    real = os.path.realpath(path)
    base = os.path.realpath(root)
    if real != base and not real.startswith(base + os.sep):
        raise StoreError(f"{path} points outside the project, to {real}", fix="copy it into the project")
