"""Run the runner on a `Disk` without FUSE: python -m tests.faults.os_layer PLACE SEED OBEYS [CUT ...].

The functions of `os` that change the store's files tell the disk too; what other processes and the C
libraries write there counts as never synced, until somebody syncs it. At each CUT, counted in changes,
what a power cut at that moment would leave is written to PLACE/CUT; at the end, their number to
PLACE/count.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy_runner.cli import main as deploy_runner
from tests.faults.disk import Disk, File, Folder

__all__ = ["Recorder"]


class Recorder:
    """Tells a disk what this process does below one folder."""

    def __init__(self, home: str, disk: Disk) -> None:
        self._home = home
        self._disk = disk
        self._guard = threading.RLock()

    def install(self) -> None:
        """Begin to tell."""
        for name in ("open", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir"):
            setattr(os, name, self._told(getattr(self, name), getattr(os, name)))

    def _told(self, tell: Callable[..., None], real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._guard:  # The runner has threads that wait for the disk.
                tell(*args, **kwargs)
                return real(*args, **kwargs)

        return call

    def _inside(self, path: Any, dir_fd: int | None = None) -> str:
        """Return a path relative to the store, or nothing for one outside."""
        before = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        full = os.path.normpath(os.path.join(before, os.fspath(path)))
        return full.removeprefix(self._home + "/") if full.startswith(self._home + "/") else ""

    def refresh(self) -> None:
        """Let the disk see what others have written, as what nobody has synced."""
        self._refresh(self._disk.root, self._home)

    def _refresh(self, folder: Folder, place: str) -> None:
        with os.scandir(place) as entries:
            found = {entry.name: entry for entry in entries}
        for name in folder.names.keys() - found.keys():
            folder.put(name, None)
        for name, real in found.items():
            known = folder.names.get(name)
            if known is None:
                known = Folder() if real.is_dir() else File(real.stat().st_mode & 0o777)
                folder.put(name, known)
            if isinstance(known, Folder):
                self._refresh(known, real.path)
            else:
                known.data = bytearray(Path(real.path).read_bytes())

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if (name := self._inside(path, dir_fd)) and flags & os.O_CREAT and not self._exists(name):
            self.refresh()
            self._disk.tick()

    def _exists(self, name: str) -> bool:
        return os.path.lexists(f"{self._home}/{name}")

    def write(self, fd: int, data: Any) -> None:
        if self._inside(os.readlink(f"/proc/self/fd/{fd}")):
            self._disk.tick()

    def fsync(self, fd: int) -> None:
        if name := self._inside(os.readlink(f"/proc/self/fd/{fd}")):
            self.refresh()
            self._disk.sync(self._disk.at(name))

    def rename(
        self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        one, two = self._inside(old, src_dir_fd), self._inside(new, dst_dir_fd)
        if one and two and self._exists(one):
            self.refresh()
            if self._exists(os.path.dirname(two)):
                self._disk.rename(one, two)

    def link(self, old: Any, new: Any) -> None:
        one, two = self._inside(old), self._inside(new)
        if one and two and not self._exists(two):
            self.refresh()
            self._disk.make(two, self._disk.at(one))

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        if (name := self._inside(path, dir_fd)) and self._exists(name):
            self.refresh()
            self._disk.remove(name)

    rmdir = unlink

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if (name := self._inside(path, dir_fd)) and not self._exists(name):
            self.refresh()
            if self._exists(os.path.dirname(name)):
                self._disk.make(name, Folder())


def main(place: str, seed: str, obeys: str, *cuts: str) -> int:
    """Run the pipeline; return its exit code."""
    home = os.environ["DEPLOY_RUNNER_HOME"]

    def power_cut(count: int) -> None:
        recorder.refresh()
        disk.survive(Path(place, str(count)), random.Random(f"{seed} {count}"))

    disk = Disk([int(cut) for cut in cuts], power_cut, obeys=obeys == "obeys")
    recorder = Recorder(home, disk)
    recorder.install()
    code = deploy_runner(["run", "--quiet"])
    Path(place, "count").write_text(str(disk.count))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
