"""Remove what a stage left, whatever modes, links and depths it made: by descriptors, no link followed."""

from __future__ import annotations

import os
import stat as stat_module
from contextlib import suppress
from pathlib import Path

from .handles import opened

__all__ = ["remove_tree"]


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; what the system keeps us from removing stays for the next sweep.

    A link or a file in its place goes too. Folders in folders are moved up into `path` first, so that
    no depth is too much.
    """
    with suppress(OSError):
        if not stat_module.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        _let_in(os.fspath(path), None)
        with opened(os.fspath(path)) as root:
            _remove_below(root)
        path.rmdir()


def _remove_below(root: int) -> None:
    pending = _clear(root, root)
    while pending:
        name = pending.pop()
        _let_in(name, root)
        with opened(name, root) as below:
            pending += _clear(below, root)
        os.rmdir(name, dir_fd=root)


def _clear(folder: int, root: int) -> list[str]:
    """Unlink what is in an open folder and move its folders into `root`; return their names there."""
    folders = []
    for name in os.listdir(folder):
        if not stat_module.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            continue
        moved = name
        if folder != root:
            _let_in(name, folder)
            moved = f"{os.urandom(8).hex()}.removed"
            os.rename(name, moved, src_dir_fd=folder, dst_dir_fd=root)
        folders.append(moved)
    return folders


def _let_in(name: str, folder: int | None) -> None:
    """Give a folder a mode that lets us in, by a descriptor of itself: chmod(2) would follow a link."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        mode = os.fstat(fd).st_mode
        if stat_module.S_ISDIR(mode) and mode & 0o700 != 0o700:
            with suppress(OSError):
                os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)
