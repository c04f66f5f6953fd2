"""A disk that keeps, when the power goes, only what was synced, and of the rest whatever chance wants.

The model of POSIX at its harshest: a file's content is safe after fsync of the file, a name (made,
renamed, linked or removed) after fsync of its folder. Of what is not safe a random part survives, in
each folder and file for itself; a content can survive as a part of it, or as so many zeros.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Disk", "File", "Folder"]


@dataclass(eq=False)
class File:
    """A file: what its readers see, and what the medium has."""

    mode: int = 0o644
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""

    def sync(self) -> None:
        self.synced = bytes(self.data)

    def surviving(self, rng: random.Random) -> bytes:
        """Return what is found after the power has come back."""
        data = bytes(self.data)
        if data == self.synced:
            return data
        part = data[: rng.randrange(len(data) + 1)]
        return rng.choice((self.synced, data, part, bytes(len(data)), part + self.synced[len(part) :]))


@dataclass(eq=False)
class Folder:
    """A folder: its names as everyone sees them, as the medium has them, and what lies between."""

    mode: int = 0o755
    names: dict[str, File | Folder] = field(default_factory=dict)
    synced: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[tuple[str, File | Folder | None]] = field(default_factory=list)

    def put(self, name: str, entry: File | Folder | None) -> None:
        """Give a name to an entry, or take it away."""
        if entry is None:
            del self.names[name]
        else:
            self.names[name] = entry
        self.changes.append((name, entry))

    def sync(self) -> None:
        self.synced, self.changes = dict(self.names), []

    def surviving(self, rng: random.Random) -> dict[str, File | Folder]:
        """Return what is found after the power has come back: none, some, the first or all changes."""
        count = len(self.changes)
        kept: list[bool] = rng.choice((
            [False] * count,
            [rng.random() < 0.5 for _ in range(count)],
            [i < rng.randrange(count + 1) for i in range(count)],
            [True] * count,
        ))  # fmt: skip
        found = dict(self.synced)
        for (name, entry), survives in zip(self.changes, kept, strict=True):
            if survives and entry is None:
                found.pop(name, None)
            elif survives and entry is not None:
                found[name] = entry
        return found


class Disk:
    """The whole of it. At each moment in `cuts`, counted in changes, `power_cut` is told the disk."""

    def __init__(self, cuts: list[int], power_cut: Callable[[int], None], *, obeys: bool = True) -> None:
        self.root = Folder()
        self.count = 0
        self._cuts = frozenset(cuts)
        self._power_cut = power_cut
        self._obeys = obeys

    def tick(self) -> None:
        """Count one change; called before it is made."""
        self.count += 1
        if self.count in self._cuts:
            self._power_cut(self.count)

    def sync(self, entry: File | Folder) -> None:
        """Do what fsync(2) promises; a disk that lies does so for names alone."""
        self.tick()
        if self._obeys or isinstance(entry, Folder):
            entry.sync()

    def at(self, path: str) -> File | Folder:
        """Return what has this path. Raises FileNotFoundError."""
        found: File | Folder = self.root
        for name in filter(None, path.split("/")):
            if not isinstance(found, Folder) or name not in found.names:
                raise FileNotFoundError(path)
            found = found.names[name]
        return found

    def parent(self, path: str) -> tuple[Folder, str]:
        """Return the folder that a path is in, and its name there."""
        before, _, name = path.rstrip("/").rpartition("/")
        folder = self.at(before)
        if not isinstance(folder, Folder):
            raise FileNotFoundError(path)
        return folder, name

    def make(self, path: str, entry: File | Folder) -> None:
        self.tick()
        folder, name = self.parent(path)
        folder.put(name, entry)

    def remove(self, path: str) -> None:
        self.tick()
        folder, name = self.parent(path)
        folder.put(name, None)

    def rename(self, old: str, new: str) -> None:
        self.tick()
        entry = self.at(old)
        for path, value in ((new, entry), (old, None)):
            folder, name = self.parent(path)
            folder.put(name, value)

    def write(self, file: File, data: bytes, offset: int) -> None:
        self.tick()
        if offset > len(file.data):
            file.data.extend(bytes(offset - len(file.data)))
        file.data[offset : offset + len(data)] = data

    def truncate(self, file: File, length: int) -> None:
        self.tick()
        del file.data[length:]
        file.data.extend(bytes(length - len(file.data)))

    def survive(self, place: Path, rng: random.Random) -> None:
        """Write down, as a real folder, what is found after the power has come back."""
        _survive(self.root, place, rng)


def _survive(folder: Folder, place: Path, rng: random.Random) -> None:
    place.mkdir()
    for name, entry in folder.surviving(rng).items():
        if name.startswith(".fuse_hidden"):
            continue  # Removed while it was open: it has no name of its own any more.
        if isinstance(entry, Folder):
            _survive(entry, place / name, rng)
        else:
            (place / name).write_bytes(entry.surviving(rng))
            (place / name).chmod(entry.mode & 0o777)
    place.chmod(folder.mode & 0o777 | 0o700)
