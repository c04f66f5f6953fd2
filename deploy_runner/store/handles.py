"""Folders by descriptor: what somebody else wrote is walked without following one of its links.

A path is looked up again at every call, so that a link in its place leads anywhere. A descriptor
stays with the folder that was opened: every step below it is one name, with O_NOFOLLOW, on one disk.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ..errors import StoreError

__all__ = ["Entry", "entry_of", "let_in", "let_move", "open_file", "open_folder", "opened", "walk_at"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_DEEPEST = 64


class Entry(NamedTuple):
    """One thing in an open folder: `name` in `folder`, `path` below where the walk began."""

    path: str
    folder: int
    name: str
    stat: os.stat_result

    @property
    def shown(self) -> str:
        """Return the path as messages have it: on one line, and in UTF-8."""
        return self.path if self.path.isprintable() else repr(self.path)

    @property
    def is_file(self) -> bool:
        """Say whether it is a regular file; a link is not."""
        return stat_module.S_ISREG(self.stat.st_mode)


def open_folder(name: str, folder: int | None = None) -> int:
    """Return a descriptor of the folder `name`, which is in `folder` and on its disk.

    Raises StoreError for a link, a file or another disk's folder, OSError if it doesn't exist.
    """
    try:
        try:
            fd = os.open(name, _FOLDER, dir_fd=folder)
        except PermissionError:
            let_in(name, folder)
            fd = os.open(name, _FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise StoreError(f"{name} is not a folder", fix="a link is never followed") from error
        raise
    if folder is not None and os.fstat(fd).st_dev != os.fstat(folder).st_dev:
        os.close(fd)
        raise StoreError(f"{name} is on another disk")
    return fd


def let_in(name: str, folder: int | None) -> None:
    """Have us, its owner, read a file, or read and write a folder, whatever mode it has.

    That goes by a descriptor of itself: chmod(2) would follow a link.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        mode = os.fstat(fd).st_mode
        needed = {stat_module.S_IFDIR: 0o700, stat_module.S_IFREG: 0o400}.get(stat_module.S_IFMT(mode), 0)
        if mode & needed != needed:
            with suppress(OSError):
                os.chmod(f"/proc/self/fd/{fd}", stat_module.S_IMODE(mode) | needed)
    finally:
        os.close(fd)


def let_move(folder: int) -> None:
    """Have us, its owner, move what is in an open folder elsewhere."""
    mode = os.fstat(folder).st_mode
    if not mode & stat_module.S_IWUSR:
        with suppress(OSError):
            os.fchmod(folder, stat_module.S_IMODE(mode) | 0o700)


@contextmanager
def opened(path: str, folder: int | None = None) -> Iterator[int]:
    """Open the folder at a relative `path` below `folder`, name by name; `folder` None opens one name."""
    if folder is None:
        fd = open_folder(path)
    else:
        fd = os.dup(folder)
        for part in [p for p in path.split("/") if p]:
            try:
                below = open_folder(part, fd)
            finally:
                os.close(fd)
            fd = below
    try:
        yield fd
    finally:
        os.close(fd)


def open_file(entry: Entry, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a regular file, the one that was seen. Raises StoreError."""
    if not entry.is_file:
        raise StoreError(f"{entry.shown} is not a regular file")
    try:
        fd = os.open(entry.name, flags | _FILE, dir_fd=entry.folder)
    except PermissionError:
        let_in(entry.name, entry.folder)
        fd = os.open(entry.name, flags | _FILE, dir_fd=entry.folder)
    seen, found = entry.stat, os.fstat(fd)
    if (seen.st_ino, seen.st_dev) != (found.st_ino, found.st_dev):
        os.close(fd)
        raise StoreError(f"{entry.shown} was replaced while it was read")
    return fd


def entry_of(folder: int, name: str) -> Entry:
    """Return what has a name in an open folder. Raises FileNotFoundError."""
    return Entry(name, folder, name, os.stat(name, dir_fd=folder, follow_symlinks=False))


def walk_at(folder: int, prefix: str = "", *, skip: Container[str] = (), depth: int = 0) -> Iterator[Entry]:
    """Yield what is below an open folder, sorted by name, a folder before what it holds.

    A folder whose path is in `skip` is not entered. An entry's `folder` is open until the next one is
    asked for. Raises StoreError for another disk's folder and for more than 64 folders in one another.
    """
    if depth > _DEEPEST:
        raise StoreError(f"{prefix[:40]}… is nested in more than {_DEEPEST} folders")
    for name in sorted(os.listdir(folder)):
        entry = entry_of(folder, name)._replace(path=f"{prefix}{name}")
        yield entry
        if stat_module.S_ISDIR(entry.stat.st_mode) and entry.path not in skip:
            with opened(name, folder) as below:
                yield from walk_at(below, f"{entry.path}/", skip=skip, depth=depth + 1)
