"""The folders of a store are folders: a link in the place of one would have us write and delete elsewhere."""

from __future__ import annotations

import os
import stat as stat_module
from contextlib import suppress

from .files import refuse_exhaustion

__all__ = ["FOLDERS", "give_way", "settle", "subfolders"]

FOLDERS = (
    "actions", "cas", "cas/sha256", "compiled", "last", "locks", "pull-requests", "runs", "tmp",
)  # fmt: skip
"""Every folder of a store whose name is known beforehand, a folder before what it holds."""


def settle(home: str) -> None:
    """Remove what stands where the store in `home` has a folder and is none: a link, a file, a pipe.

    Only the name goes: what a link leads to stays as it is. Nothing happens where we may not.
    """
    for name in FOLDERS:
        give_way(f"{home}/{name}")


def give_way(path: str) -> None:
    """Remove a link, a file or a pipe that stands where one of the store's folders belongs."""
    with suppress(OSError):
        if not stat_module.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)


def subfolders(path: str) -> list[str]:
    """Return the names of the folders in a folder, without links to such; none where there is none.

    Raises StoreError as `read_or_none` does.
    """
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        refuse_exhaustion(error, path)
        return []
