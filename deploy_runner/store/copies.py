"""Private copies of artifacts and of project files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import StoreError
from ..types import Artifact
from .files import NEW, copy_private, store_error, writing
from .folders import Member, folder_artifact, is_executable, stay_inside, unread, walk
from .removal import remove_tree
from .stat import sha256_file

__all__ = ["Piece", "Put", "copied", "copy_path", "copy_pieces", "copy_whole"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Piece = tuple[str, str, int, str]
"""(source file, name inside the target or nothing, mode, digest); an empty folder's name ends with `/`."""


Put = Callable[[str, Path, int], str]
"""Puts a file (source, target, mode) where a stage reads it, and returns its digest. Raises OSError."""


def copied(source: str, target: Path, mode: int) -> str:
    """Copy a file, and return the digest of the copy.

    What is hashed is the private copy, so that what a record says was read is what is read, whoever
    alters the original meanwhile. Raises OSError.
    """
    copy_private(source, target, mode)
    return sha256_file(target)


def copy_pieces(pieces: Iterable[Piece], target: Path, *, folder: bool, put: Put = copied) -> None:
    """Put the pieces of an artifact to `target`, and check that each is what its digest says.

    Raises StoreError where one isn't, OSError where it can't be written.
    """
    if folder:
        target.mkdir()
    for source, name, mode, digest in pieces:
        place = target / name if name else target
        if name.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
            continue
        if name:
            place.parent.mkdir(parents=True, exist_ok=True)
        if put(source, place, mode) != digest:
            raise StoreError(
                f"object {digest} changed after it was verified",
                fix="run again to rebuild it",
            )


def copy_whole(pieces: Iterable[Piece], target: Path, *, folder: bool) -> None:
    """Copy the pieces of an artifact to `target`: all of it, or nothing and a StoreError."""
    partial = target.with_name(f".{os.urandom(8).hex()}{NEW}")
    try:
        with writing(target, "choose a folder that can be written"):
            copy_pieces(pieces, partial, folder=folder)
            os.rename(partial, target)
    except BaseException:
        remove_tree(partial)
        raise


def copy_path(source: str, target: Path, expected: Artifact, root: str, put: Put = copied) -> None:
    """Put a file or folder of the project to `target`, and check that it is `expected`.

    A file's copy is executable if `expected` is. Raises StoreError where the content is not what it was when
    the key was made.
    """
    try:
        stay_inside(source, root)
        if expected.kind == "file":
            mode = Member("", executable=expected.executable).mode
            found = Artifact(put(os.path.realpath(source), target, mode), "file", expected.size)
        else:
            target.mkdir()
            found = folder_artifact([_copy_member(*entry, target, put) for entry in walk(source)])
    except OSError as error:
        if error.errno in _FULL:
            raise store_error(error, target) from error
        where = error.filename or source
        raise StoreError(f"{where} can't be read: {error.strerror or error}", fix=unread(error)) from error
    if found.digest != expected.digest:
        raise StoreError(f"{source} changed during the run", fix="run again")


def _copy_member(name: str, full: str, st: os.stat_result, target: Path, put: Put) -> Member:
    place = target / name
    if name.endswith("/"):
        place.mkdir(parents=True, exist_ok=True)
        return Member(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    member = Member(name, executable=is_executable(st.st_mode))
    return member._replace(digest=put(full, place, member.mode), size=place.stat().st_size)
