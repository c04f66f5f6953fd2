"""Large inputs that a worker reads where they are, mounted read-only in the place of a copy.

The runner opens each file and notes its state before the worker starts, and looks again once it has ended:
nobody else may have written to it meanwhile. The worker mounts the file in its own namespace; where the disk
shares blocks between files it takes a copy that shares them, and without a namespace a whole copy.
"""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...store.copies import copied
from ...store.files import clone, copy_private
from ...store.stat import Fingerprint, StatMemo, sha256_file, state_of
from .kernel import attempt, bind, make_read_only

__all__ = ["SMALLEST_BYTES", "Held", "Places", "advice"]

SMALLEST_BYTES = 1 << 20
"""A smaller file is copied: that takes no longer than to mount it, and the copy can be written."""
_MOST = 64
"""Of one stage: each is a descriptor."""
_REFUSED = (
    "Permission denied",
    "Read-only file system",
    "Device or resource busy",
    "Operation not permitted",
)


class _File(NamedTuple):
    fd: int
    before: os.stat_result
    shown: str


class Held:
    """The files of one action that its worker may read where they are."""

    def __init__(self) -> None:
        self._files: list[_File] = []
        self.states: dict[str, tuple[Fingerprint, str]] = {}
        """Path → its state and, where it is known without reading the file again, its digest."""

    def offer(self, path: str, memo: StatMemo, *, shown: str, known_as: str = "") -> None:
        """Hold a file if it is large enough, and not to be executed.

        `shown` is what it is called in messages, `known_as` the path that `memo` has it under, if another.
        """
        if len(self._files) == _MOST or path in self.states:
            return
        with suppress(OSError):
            if os.stat(path).st_size < SMALLEST_BYTES:
                return
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            found = os.fstat(fd)
            if not _is_readable(found):
                os.close(fd)
                return
            state = state_of(found)
            self._files.append(_File(fd, found, shown))
            self.states[path] = (state, memo.lookup(known_as or path, state) or "")

    def changed(self) -> str:
        """Return what one of the files is called that has been written to since it was opened, or nothing."""
        return next((file.shown for file in self._files if _differs(file.before, os.fstat(file.fd))), "")

    def close(self) -> None:
        """Let the files go."""
        while self._files:
            os.close(self._files.pop().fd)


def advice(held: Held, work: str, said: str) -> str:
    """Return what to do where a stage's words say that it was refused to write to an input, or to a copy.

    `work` is the folder of the stage.
    """
    if held.states and f"{work}/" in said and any(why in said for why in _REFUSED):
        how = "`cp --no-preserve=mode` or shutil.copyfile"
        return f"an input of 1 MiB or more can't be written, moved or removed: copy its content by {how}"
    return ""


def _is_readable(found: os.stat_result) -> bool:
    """Say whether a worker, which has no capability, may read a regular file; it may not execute it."""
    mode = found.st_mode
    readable = mode & stat_module.S_IROTH or (mode & stat_module.S_IRUSR and found.st_uid == os.geteuid())
    return stat_module.S_ISREG(mode) and bool(readable) and not mode & 0o111


def _differs(before: os.stat_result, now: os.stat_result) -> bool:
    """Say whether a file's content may have changed: to lose a name, as by a rename, is no such change."""
    if (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
        return True
    return before.st_ctime_ns != now.st_ctime_ns and before.st_nlink == now.st_nlink


class Places:
    """Puts files where a stage reads them; `held` is the `states` of Held.

    `mounts` says that this process is in a mount namespace of its own.
    """

    def __init__(self, held: Mapping[str, Sequence[object]], *, mounts: bool) -> None:
        self._held = held if mounts else {}

    def put(self, source: str, target: Path, mode: int) -> str:
        """Put a file at `target`, which must not exist, and return its digest. Raises OSError."""
        state, digest = self._held.get(source, ((), ""))
        if not state or mode & 0o111:  # An object is not executable, though what it is of may be.
            return copied(source, target, mode)
        known = ""

        def share(fd: int, new: int) -> bool:
            nonlocal known
            unchanged = list(state_of(os.fstat(fd))) == state
            shared = clone(fd, new) or (unchanged and _mounted(fd, str(target)))
            if shared and unchanged:
                known = str(digest)
            return shared

        copy_private(source, target, mode, share)
        return known or sha256_file(target)


def _mounted(fd: int, target: str) -> bool:
    """Mount an open file read-only over another; say whether this process may."""
    with attempt():
        bind(f"/proc/self/fd/{fd}", target)
    if not os.path.samestat(os.fstat(fd), os.stat(target)):
        return False
    make_read_only(target)
    return True
