"""Mount a `Disk` by FUSE: python -m tests.faults.fuse_layer MOUNT PLACE SEED OBEYS [CUT ...].

Every process that uses the mount sees an ordinary file system. At each CUT, counted in changes, what
a power cut at that moment would leave is written to PLACE/CUT; at the end, their number to PLACE/count.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import sys
import time
from pathlib import Path
from typing import Any

import mfusepy

from tests.faults.disk import Disk, File, Folder

__all__ = ["Layer"]


class Layer(mfusepy.Operations):  # type: ignore[misc]
    """The operations of FUSE on a disk."""

    use_ns = True

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._open: dict[int, File] = {}
        self._times: dict[File | Folder, tuple[int, int]] = {}
        self._links: dict[File, int] = {}
        self._next = 0

    def _at(self, path: str) -> File | Folder:
        try:
            return self._disk.at(path)
        except FileNotFoundError:
            raise mfusepy.FuseOSError(errno.ENOENT) from None

    def _file(self, path: str, fh: int | None) -> File:
        found = self._open.get(fh or 0) or self._at(path)
        if not isinstance(found, File):
            raise mfusepy.FuseOSError(errno.EISDIR)
        return found

    def _folder(self, path: str) -> Folder:
        found = self._at(path)
        if not isinstance(found, Folder):
            raise mfusepy.FuseOSError(errno.ENOTDIR)
        return found

    def _touch(self, entry: File | Folder) -> None:
        self._times[entry] = (time.time_ns(), time.time_ns())

    def _handle(self, file: File) -> int:
        self._next += 1
        self._open[self._next] = file
        return self._next

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        entry = self._open.get(fh or 0) or self._at(path)
        mtime, ctime = self._times.get(entry, (0, 0))
        kind, size = (stat.S_IFREG, len(entry.data)) if isinstance(entry, File) else (stat.S_IFDIR, 4096)
        links = self._links.get(entry, 1) if isinstance(entry, File) else 2
        return {"st_mode": kind | entry.mode, "st_nlink": links, "st_size": size, "st_uid": os.getuid(),
                "st_gid": os.getgid(), "st_atime": mtime, "st_mtime": mtime, "st_ctime": ctime}  # fmt: skip

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._folder(path).names]

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bfree": 1 << 20, "f_bavail": 1 << 20,
                "f_files": 1 << 20, "f_ffree": 1 << 20, "f_favail": 1 << 20, "f_namemax": 255}  # fmt: skip

    def mkdir(self, path: str, mode: int) -> int:
        made = Folder(mode)
        self._touch(made)
        self._disk.make(path, made)
        return 0

    def rmdir(self, path: str) -> int:
        if self._folder(path).names:
            raise mfusepy.FuseOSError(errno.ENOTEMPTY)
        self._disk.remove(path)
        return 0

    def unlink(self, path: str) -> int:
        file = self._file(path, None)
        self._links[file] = self._links.get(file, 1) - 1
        self._disk.remove(path)
        return 0

    def rename(self, old: str, new: str) -> int:
        try:
            replaced = self._disk.at(new)
        except FileNotFoundError:
            replaced = None
        if isinstance(replaced, Folder) and replaced.names:
            raise mfusepy.FuseOSError(errno.ENOTEMPTY)
        if isinstance(replaced, File):
            self._links[replaced] = self._links.get(replaced, 1) - 1
        self._disk.rename(old, new)
        return 0

    def link(self, target: str, source: str) -> int:
        file = self._file(source, None)
        self._links[file] = self._links.get(file, 1) + 1
        self._disk.make(target, file)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._at(path).mode = mode & 0o7777
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._times[self._at(path)] = (times[1] if times else time.time_ns(), time.time_ns())
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        file = File(mode & 0o7777)
        self._touch(file)
        self._disk.make(path, file)
        return self._handle(file)

    def open(self, path: str, flags: int) -> int:
        return self._handle(self._file(path, None))

    def release(self, path: str, fh: int) -> int:
        self._open.pop(fh, None)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._file(path, fh).data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        file = self._file(path, fh)
        self._disk.write(file, data, offset)
        self._touch(file)
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        file = self._file(path, fh)
        self._disk.truncate(file, length)
        self._touch(file)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._disk.sync(self._file(path, fh))
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._disk.sync(self._folder(path))
        return 0


def main(mount: str, place: str, seed: str, obeys: str, *cuts: str) -> None:
    """Serve the mount until it is unmounted."""

    def power_cut(count: int) -> None:
        disk.survive(Path(place, str(count)), random.Random(f"{seed} {count}"))

    disk = Disk([int(cut) for cut in cuts], power_cut, obeys=obeys == "obeys")
    mfusepy.FUSE(Layer(disk), mount, foreground=True, nothreads=True, default_permissions=True)
    Path(place, "count").write_text(str(disk.count))


if __name__ == "__main__":
    main(*sys.argv[1:])
