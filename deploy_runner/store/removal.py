"""Remove what a stage left, whatever modes, links and depths it made: by descriptors, no link followed."""

from __future__ import annotations

import os
import stat as stat_module
from contextlib import suppress
from pathlib import Path

from .handles import let_in, opened

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
        let_in(os.fspath(path), None)
        with opened(os.fspath(path)) as root:
            _remove_below(root)
        path.rmdir()


def _remove_below(root: int) -> None:
    pending = _clear(root, root)
    while pending:
        name = pending.pop()
        let_in(name, root)
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
            let_in(name, folder)
            moved = f"{os.urandom(8).hex()}.removed"
            os.rename(name, moved, src_dir_fd=folder, dst_dir_fd=root)
        folders.append(moved)
    return folders
