"""Catch what a stage reads without having declared it, and without landlock what it writes elsewhere.

A read of a file of the project (or of the user's home) that is no declared input makes the
cache lie: the key doesn't know of it. The hook refuses the read, and remembers it, since the
stage's code may swallow the refusal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

__all__ = ["ReadGuard", "WriteGuard"]

_EVENTS = frozenset(("open", "os.listdir", "os.scandir"))
_CHANGES = {"os.chmod": 1, "os.link": 2, "os.mkdir": 1, "os.remove": 1, "os.rename": 2, "os.rmdir": 1,
            "os.symlink": 2, "os.truncate": 1, "os.utime": 1}  # fmt: skip
"""Audit events of changes, with how many paths they begin with."""
_DEVICES = ("/dev/", "/proc/self/")
_MOST_MISSED = 1000
_CONFIGURATION = (".cache", ".config", ".netrc", ".aws", ".docker", ".gitconfig", ".local")


class ReadGuard:
    """Watches one project's folder in this process; `violations` are paths relative to it.

    `missed` are paths of files that aren't there, or that the process's root folder doesn't show.
    """

    def __init__(self, project: str, home: str, allowed: Iterable[str]) -> None:
        self.violations: list[str] = []
        self.missed: list[str] = []
        self._project = os.path.realpath(project)
        self._guarded = tuple({self._project + os.sep, *([os.path.realpath(home) + os.sep] if home else [])})
        self._home = os.path.realpath(home) + os.sep if home else ""
        self._allowed = tuple(os.path.realpath(path) for path in allowed)
        self._allowed_inside = tuple(p for p in self._allowed if p.startswith(self._project + os.sep))
        self._busy = False

    def install(self) -> None:
        """Begin; a hook can't be taken away again, so this belongs into a worker."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if event not in _EVENTS or self._busy or not args:
            return
        path = args[0]
        if isinstance(path, int) or path is None or _writes(event, args):
            return
        self._busy = True
        try:
            real = os.path.realpath(os.fspath(path))  # type: ignore[call-overload]
            if isinstance(real, bytes):
                real = os.fsdecode(real)
            refused = self._is_refused(real)
        finally:
            self._busy = False
        if refused:
            shown = os.path.relpath(real, self._project)
            if shown not in self.violations:
                self.violations.append(shown)
            raise PermissionError(13, "not a declared input of this stage", shown)

    def _is_refused(self, real: str) -> bool:
        if not real.startswith(self._guarded):
            return False
        inside = real.startswith(self._project + os.sep)
        allowed = self._allowed_inside if inside else self._allowed
        if any(real == a or real.startswith(a + os.sep) for a in allowed):
            return False
        if not inside and real.removeprefix(self._home).startswith(_CONFIGURATION):
            return False
        if os.path.isfile(real):
            return True
        # Looking for a file that doesn't exist changes nothing: the runner sees whether it is.
        if len(self.missed) < _MOST_MISSED and not os.path.isdir(real):
            self.missed.append(real)
        return False


class WriteGuard:
    """Refuses Python code to change anything outside of one folder, where the kernel can't do that."""

    def __init__(self, folder: str) -> None:
        self._allowed = (os.path.realpath(folder) + os.sep, *_DEVICES)

    def install(self) -> None:
        """Begin; like the other hook it can't be taken away again."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            count = 1 if _writes(event, args) or _updates(args) else 0
        else:
            count = _CHANGES.get(event, 0)
        for path in args[:count]:
            if not isinstance(path, int) and path is not None:
                self._refuse(os.fsdecode(path))  # type: ignore[arg-type]

    def _refuse(self, path: str) -> None:
        real = os.path.realpath(path)
        if not real.startswith(self._allowed):
            raise PermissionError(13, "a stage may write to its own folder only", path)


def _updates(args: tuple[object, ...]) -> bool:
    """Say whether an `open` event is of a file to be read and written."""
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return "+" in mode
    return isinstance(flags, int) and flags & os.O_ACCMODE == os.O_RDWR


def _writes(event: str, args: tuple[object, ...]) -> bool:
    if event != "open" or len(args) < 3:
        return False
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return "r" not in mode and "+" not in mode
    return isinstance(flags, int) and flags & os.O_ACCMODE == os.O_WRONLY
