"""Tar archives that would leave the folder they are unpacked to, or fill the disk or the memory."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.security.samples import Place, Sample

__all__ = ["archives"]


def archives() -> Iterator[Sample]:
    """Members that `tarfile` would write outside of the folder, or that are no files."""
    members: dict[str, Callable[[Place], list[tarfile.TarInfo]]] = {
        "above": lambda p: [_entry("../canary")],
        "above inside": lambda p: [_entry("a/../../canary")],
        "absolute": lambda p: [_entry(str(p.canary))],
        "symlink out": lambda p: [
            _entry("link", tarfile.SYMTYPE, str(p.canary.parent)),
            _entry("link/canary"),
        ],
        "hard link out": lambda p: [_entry("link", tarfile.LNKTYPE, str(p.secret))],
        "symlink inside": lambda p: [_entry("a", tarfile.SYMTYPE, "b")],
        "device": lambda p: [_entry("zero", tarfile.CHRTYPE)],
        "block device": lambda p: [_entry("disk", tarfile.BLKTYPE)],
        "fifo": lambda p: [_entry("pipe", tarfile.FIFOTYPE)],
    }
    yield Sample("tar-a_bomb", "archive", lambda p: _tar_of_zeros(p, tarfile.REGTYPE))
    yield Sample("tar-a_header_without_end", "archive", lambda p: _tar_of_zeros(p, tarfile.XHDTYPE))
    for name, entries in members.items():

        def make(place: Place, e: Any = entries) -> Path:
            with tarfile.open(place.folder / "model.tar.gz", "w:gz") as tar:
                for entry in e(place):
                    tar.addfile(entry)
            return place.folder / "model.tar.gz"

        yield Sample(f"tar-{name.replace(' ', '_')}", "archive", make)


def _tar_of_zeros(place: Place, kind: bytes) -> Path:
    """Write a member, or its extended header, of 256 MiB."""
    entry = _entry("zeros", kind)
    entry.size = 256 << 20
    path = place.folder / "model.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(entry.tobuf())
        for _ in range(256):
            file.write(bytes(1 << 20))
    return path


def _entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry
