"""A run under way: what its log has said so far, and whether anybody still writes it."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from ..store.files import open_regular
from .shapes import line_of

__all__ = ["LOG", "Follower", "Progress", "is_running", "open_below", "tail"]

LOG = "log.jsonl"
_PART_BYTES = 1 << 20
_LINE_BYTES = 1 << 16
_PRINTED = b'"kind": "stage-log"'
"""Marks, near the start of a line, what a stage has printed: it is in a file of the stage, too."""


@dataclass
class Progress:
    """What is known of one stage of a run under way."""

    state: str
    since_s: float = 0.0
    seconds: float = 0.0
    reason: str = ""
    error: str = ""


@dataclass
class Follower:
    """Reads a run's log as it grows, each byte of it once."""

    folder: Path
    stages: dict[str, Progress] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    changes: int = 0
    _place: int = 0
    _lock: Lock = field(default_factory=Lock)

    def read(self) -> int:
        """Read what is new, and return a number that is another after each change."""
        with self._lock:
            try:
                fd = open_below(self.folder, LOG)
            except OSError:
                return self.changes
            try:
                self._read(fd)
            finally:
                os.close(fd)
            return self.changes

    def _read(self, fd: int) -> None:
        """Take in complete lines; one that is longer than a part is left out."""
        os.lseek(fd, self._place, os.SEEK_SET)
        while part := os.read(fd, _PART_BYTES):
            end = part.rfind(b"\n") + 1
            for line in part[:end].split(b"\n"):
                if line and len(line) <= _LINE_BYTES and _PRINTED not in line[:64]:
                    self._take(line)
            self._place += end or (len(part) if len(part) == _PART_BYTES else 0)
            if len(part) < _PART_BYTES:
                return
            os.lseek(fd, self._place, os.SEEK_SET)

    def _take(self, text: bytes) -> None:
        line = line_of(text)
        if line is None:
            return
        self.changes += 1
        if line.kind == "stages-hit":
            self.stages.update({id_: Progress("hit") for id_ in line.stages})
        elif line.kind == "stage-started":
            self.stages[line.stage] = Progress("running", since_s=line.time, reason=line.text)
        elif line.kind == "stage-finished":
            began = self.stages.get(line.stage)
            reason = line.reason or (began.reason if began else "")
            self.stages[line.stage] = Progress(
                line.state or "ran", seconds=line.seconds, reason=reason, error=line.error
            )
        elif line.kind == "run-note":
            self.notes = [*self.notes[-19:], line.text]


def open_below(folder: Path, name: str) -> int:
    """Open a file of a run to be read. Raises OSError for a link, a pipe, and what is missing."""
    return open_regular(os.fspath(folder / name), os.O_RDONLY | os.O_NOFOLLOW)


def is_running(folder: Path) -> bool:
    """Say whether the process that writes a run's log still has it open: it has locked it."""
    try:
        fd = open_below(folder, LOG)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


class Tail(NamedTuple):
    """The end of a file, as far as it was read: `place` is where the next part begins."""

    text: bytes
    place: int
    left_out: int


def tail(folder: Path, name: str, place: int | None, limit: int) -> Tail:
    """Return what a file has from `place` on, at most its last `limit` bytes; all of those for None.

    A missing file is empty: a stage that prints nothing has no log. What is left out in front is
    counted, and the first line is a whole one.
    """
    try:
        fd = open_below(folder, name)
    except OSError:
        return Tail(b"", place or 0, 0)
    try:
        found = os.fstat(fd)
        start = max(place or 0, found.st_size - limit)
        text = os.pread(fd, limit, start)
    finally:
        os.close(fd)
    skipped = start - (place or 0)
    if skipped > 0:
        cut = text.find(b"\n") + 1
        text, start, skipped = text[cut:], start + cut, skipped + cut
    return Tail(text, start + len(text), max(skipped, 0))
