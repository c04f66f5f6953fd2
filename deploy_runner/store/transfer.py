"""Bring one object from a remote to an open file, and hash it on the way.

One stream at first. Where a single connection is slow, as those of S3 are, the rest of a large object is
divided among several; each continues where it was after a break. Bytes go to the disk as they come, so memory
doesn't grow with the object, and a thread hashes behind them what has arrived without a gap.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from hashlib import sha256

from ..errors import StoreError
from .remote import Remote, RemoteError, Report

__all__ = ["digest_of", "download", "read_parts"]

_WATCHED_S = 1.0
_SLOW_BYTES_PER_S = 100 << 20
_WORTH_DIVIDING_BYTES = 32 << 20
_STREAMS = 4
_BREAKS = 3
"""How often in succession a stream may break without having brought a byte."""
_HASHED_BYTES = 1 << 20


class _Segment:
    """What one stream brings: from `start` to `end`, and how far it has come."""

    def __init__(self, start: int, end: int) -> None:
        self.at = self.start = start
        self.end = end


class _Download:
    def __init__(self, remote: Remote, name: str, size: int, fd: int, report: Report) -> None:
        self._remote = remote
        self._name = name
        self._fd = fd
        self._size = size
        self._report = report
        self._changed = threading.Condition()
        self._segments = [_Segment(0, size)]
        self._error: BaseException | None = None
        self._started_s = time.monotonic()

    def digest(self) -> str:
        threads = [threading.Thread(target=self._bring, args=(self._segments[0],))]
        threads[0].start()
        hashed, at = sha256(), 0
        buffer = bytearray(_HASHED_BYTES)
        try:
            while at < self._size:
                ready = self._wait_for(at, threads)
                while at < ready:
                    view = memoryview(buffer)[: min(_HASHED_BYTES, ready - at)]
                    got = os.preadv(self._fd, [view], at)
                    hashed.update(view[:got])
                    at += got
        finally:
            with self._changed:
                self._error = self._error or (RemoteError("given up") if at < self._size else None)
            for thread in threads:
                thread.join()
        return hashed.hexdigest()

    def _wait_for(self, at: int, threads: list[threading.Thread]) -> int:
        """Wait until bytes behind `at` have arrived; return up to where."""
        with self._changed:
            while self._error is None:
                here = next(s for s in self._segments if s.start <= at < s.end)
                if here.at > at:
                    return min(here.at, here.end)
                self._changed.wait(0.2)
                self._report(0)
                self._divide(threads)
            raise self._error

    def _divide(self, threads: list[threading.Thread]) -> None:
        """Give the rest of a single stream that is slow to several."""
        only = self._segments[0]
        spent_s = time.monotonic() - self._started_s
        left = only.end - only.at
        slow = only.at < spent_s * _SLOW_BYTES_PER_S
        if len(self._segments) > 1 or spent_s < _WATCHED_S or not slow or left < _WORTH_DIVIDING_BYTES:
            return
        step = -(-left // _STREAMS)
        borders = [only.at + step * n for n in range(1, _STREAMS)]
        for start, end in zip(borders, [*borders[1:], only.end], strict=True):
            self._segments.append(_Segment(start, end))
        only.end = borders[0]
        for segment in self._segments[1:]:
            threads.append(threading.Thread(target=self._bring, args=(segment,)))
            threads[-1].start()

    def _bring(self, segment: _Segment) -> None:
        breaks = 0
        try:
            while segment.at < segment.end and self._error is None:
                before = segment.at
                try:
                    self._stream(segment)
                except RemoteError:
                    breaks = 0 if segment.at > before else breaks + 1
                    if breaks >= _BREAKS:
                        raise
                else:
                    if segment.at < segment.end:
                        raise FileNotFoundError(self._name)  # It is shorter than it should be.
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
        with self._changed:
            self._changed.notify_all()

    def _stream(self, segment: _Segment) -> None:
        for chunk in self._remote.stream(self._name, segment.at, segment.end):
            view = memoryview(chunk)[: max(0, segment.end - segment.at)]
            at = segment.at
            while view:
                written = os.pwrite(self._fd, view, at)
                view, at = view[written:], at + written
            self._report(at - segment.at)
            with self._changed:
                segment.at = at
                self._changed.notify_all()
            if segment.at >= segment.end or self._error is not None:
                return


def download(remote: Remote, name: str, size: int, fd: int, report: Report) -> str:
    """Write an object of `size` bytes to an open file, and return the SHA-256 of what came.

    `report` is told of every number of bytes, and of 0 now and then while none come: what it raises ends the
    download. Raises FileNotFoundError where there is none or it is shorter,
    RemoteError where it can't be downloaded, OSError where it can't be written.
    """
    return _Download(remote, name, size, fd, report).digest()


def digest_of(remote: Remote, name: str, size: int, report: Report) -> str:
    """Return the SHA-256 of an object of `size` bytes without keeping any; a break is continued after.

    Raises FileNotFoundError where there is none or it is shorter, RemoteError where it can't be read.
    """
    hashed, at, breaks = sha256(), 0, 0
    while at < size:
        before = at
        try:
            for chunk in remote.stream(name, at, size):
                hashed.update(chunk)
                at += len(chunk)
                report(len(chunk))
        except RemoteError:
            breaks = 0 if at > before else breaks + 1
            if breaks >= _BREAKS:
                raise
        else:
            if at < size:
                raise FileNotFoundError(name)
    return hashed.hexdigest()


def read_parts(path: str, digest: str, part_bytes: int, report: Report) -> Iterator[bytes]:
    """Yield an object's file in parts. Raises StoreError at its end unless that was its digest."""
    hashed = sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(part_bytes):
                hashed.update(part)
                yield part
                report(len(part))
    except OSError as error:
        raise StoreError(f"object {digest} can't be read: {error.strerror}", fix="run again") from error
    if hashed.hexdigest() != digest:
        raise StoreError(f"object {digest} is damaged", fix="run again")
