"""The folders of a store are folders: a link in the place of one would have us write and delete elsewhere."""

from __future__ import annotations

import errno
import os
import stat as stat_module
from contextlib import suppress

from ..errors import StoreError
from .files import refuse_exhaustion, store_error

__all__ = ["FOLDERS", "give_way", "make_home", "settle", "subfolders"]

FOLDERS = (
    "actions", "cas", "cas/sha256", "compiled", "last", "locks", "pull-requests", "runs", "tmp",
)  # fmt: skip
"""Every folder of a store whose name is known beforehand, a folder before what it holds."""


def make_home(home: str) -> None:
    """Create the folder of a store, unless it exists. Raises StoreError where that can't be."""
    fix = "set DEPLOY_RUNNER_HOME to a folder that can be written"
    try:
        os.makedirs(home, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(
            f"{home} can't be the store's folder: {_file_in(home)} is a file", fix=fix
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise store_error(error, home) from error
        raise StoreError(f"the store's folder {home} can't be created: {error.strerror}", fix=fix) from error


def _file_in(path: str) -> str:
    """Return what of a path exists and is no folder."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


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
