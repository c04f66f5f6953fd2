"""The children of this process that have ended."""

from __future__ import annotations

import os
from collections.abc import Iterator

__all__ = ["reaped"]


def reaped() -> Iterator[tuple[int, int]]:
    """Yield the id and the status, as of waitpid(2), of each child that has ended by now."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status
