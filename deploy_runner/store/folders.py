"""Folders as lists of files: how they are walked, and what their digest is of.

A folder in it counts by its files; one that is empty is listed itself. Of a file's mode only the owner's
right to execute counts: the rest is the umask's of whoever checked the project out.
"""

from __future__ import annotations

import errno
import json
import os
import stat as stat_module
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from ..errors import StoreError
from ..types import Artifact

__all__ = [
    "Member", "artifact_of", "empty_folders", "folder_artifact", "is_executable", "link_problem", "manifest",
    "members_in", "refuse_name", "sha256_bytes", "stay_inside", "unread", "walk",
]  # fmt: skip


class Member(NamedTuple):
    """One file of a folder artifact; `path` is relative, with `/`.

    One whose path ends with `/` is an empty folder, which has no digest.
    """

    path: str
    digest: str = ""
    size: int = 0
    executable: bool = False

    @property
    def is_file(self) -> bool:
        """Say whether it is no empty folder."""
        return not self.path.endswith("/")

    @property
    def mode(self) -> int:
        """Return the mode of a copy: no set-user-ID, nothing that others may write."""
        return 0o755 if self.executable else 0o644


def is_executable(mode: int) -> bool:
    """Say whether a file's owner may execute it."""
    return bool(mode & stat_module.S_IXUSR)


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes."""
    from hashlib import sha256

    return sha256(data).hexdigest()


def manifest(members: list[Member]) -> bytes:
    """Return the canonical JSON of a folder's files and empty folders, whatever their order."""
    rows: list[Mapping[str, object]] = [
        {"digest": m.digest, "path": m.path, "size": m.size, "x": m.executable}
        if m.is_file
        else {"path": m.path}
        for m in sorted(members, key=lambda m: m.path)
    ]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()


def members_in(data: bytes) -> list[Member]:
    """Return what a manifest lists. Raises ValueError for what is none, as where a path leaves the folder.

    The digest proves what the bytes are, not that they were written as a manifest.
    """
    try:
        rows = [
            (m["path"], m.get("digest", ""), m.get("size", 0), m.get("x", False)) for m in json.loads(data)
        ]
        members = [Member(*row) for row in rows]
        leaving = [
            m.path for m in members if not {"", "..", "."}.isdisjoint(m.path.removesuffix("/").split("/"))
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no manifest: {error}") from None
    if leaving:
        raise ValueError(f"{leaving[0]!r} leaves the folder")
    return members


def folder_artifact(members: list[Member]) -> Artifact:
    """Return the artifact that a folder of these files is."""
    return Artifact(sha256_bytes(manifest(members)), "folder", sum(m.size for m in members))


def artifact_of(path: str, digest: Callable[[str], str]) -> Artifact:
    """Return the artifact that a file or folder is; `digest` hashes a file. Raises as `walk` does."""
    if os.path.isdir(path):
        return folder_artifact([
            Member(name, digest(full), st.st_size, is_executable(st.st_mode))
            if not name.endswith("/")
            else Member(name)
            for name, full, st in walk(path)
        ])  # fmt: skip
    st = os.stat(path)
    if not stat_module.S_ISREG(st.st_mode):
        raise StoreError(f"{path} is neither a file nor a folder", fix="use the path of a regular file")
    return Artifact(digest(path), "file", st.st_size, is_executable(st.st_mode))


def refuse_name(path: str, folder: str = "") -> None:
    """Raise StoreError for a name with a line break, or that is no UTF-8."""
    if not path.isprintable():
        shown = repr(f"{folder}/{path}" if folder else path)
        raise StoreError(
            f"{shown} has a name that can't be stored", fix="rename it: printable characters, in UTF-8"
        )


def link_problem(path: str) -> str:
    """Say what is wrong with a symbolic link that leads to nothing; nothing of any other path."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return (
            f"is a symbolic link to {os.readlink(path)!r}, which does not exist"
            if os.path.islink(path)
            else ""
        )
    except OSError as error:
        return "is a symbolic link that leads back to itself" if error.errno == errno.ELOOP else ""
    return ""


def empty_folders(paths: Iterable[str]) -> Iterator[str]:
    """Yield of sorted paths the folders (they end with `/`) that none of the others is in."""
    last = ""
    for path in paths:
        if last.endswith("/") and not path.startswith(last):
            yield last
        last = path
    if last.endswith("/"):
        yield last


def walk(folder: str) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield (relative path, path, stat) of the files below a folder, sorted.

    The relative path of an empty folder ends with `/`. Raises StoreError for a link, a special file, or an
    unprintable name.
    """
    pending = [("", folder)]
    files: list[tuple[str, str, os.stat_result]] = []
    while pending:
        prefix, place = pending.pop()
        with os.scandir(place) as entries:
            found = list(entries)
            if prefix and not found:
                files.append((prefix, place, os.stat(place)))
            for entry in found:
                name = f"{prefix}{entry.name}"
                refuse_name(entry.name, place)
                if entry.is_symlink():
                    problem = link_problem(entry.path)
                    fix = "remove it" if problem else "copy it there"
                    raise StoreError(
                        f"{entry.path} {problem or 'is a symbolic link inside a folder'}", fix=fix
                    )
                st = entry.stat()
                if stat_module.S_ISDIR(st.st_mode):
                    pending.append((f"{name}/", entry.path))
                elif stat_module.S_ISREG(st.st_mode):
                    files.append((name, entry.path, st))
                else:
                    raise StoreError(f"{entry.path} is neither a file nor a folder", fix="remove it")
    return iter(sorted(files))


def unread(error: OSError) -> str:
    """Return what to do about a file of the project that can't be read."""
    return "make it readable" if isinstance(error, PermissionError) else ""


def stay_inside(path: str, root: str) -> None:
    """Refuse a path that a link leads out of the project."""
    real = os.path.realpath(path)
    base = os.path.realpath(root)
    if real != base and not real.startswith(base + os.sep):
        raise StoreError(f"{path} points outside the project, to {real}", fix="copy it into the project")
