"""Keep Python code from writing outside of its own folder, where the kernel can't do that."""

from __future__ import annotations

import os
import sys

__all__ = ["WriteGuard", "writes"]

_CHANGES = {"os.chmod": 1, "os.link": 2, "os.mkdir": 1, "os.remove": 1, "os.rename": 2, "os.rmdir": 1,
            "os.symlink": 2, "os.truncate": 1, "os.utime": 1}  # fmt: skip
"""Audit events of changes, with how many paths they begin with."""
_DEVICES = ("/dev/", "/proc/self/")


class WriteGuard:
    """Refuses Python code to change anything outside of one folder, where the kernel can't do that."""

    def __init__(self, folder: str) -> None:
        self._allowed = (os.path.realpath(folder) + os.sep, *_DEVICES)

    def install(self) -> None:
        """Begin; a hook can't be taken away again."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            count = 1 if writes(event, args) or _updates(args) else 0
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


def writes(event: str, args: tuple[object, ...]) -> bool:
    """Say whether an `open` event is of a file to be written only."""
    if event != "open" or len(args) < 3:
        return False
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return "r" not in mode and "+" not in mode
    return isinstance(flags, int) and flags & os.O_ACCMODE == os.O_WRONLY
