"""Locks that the kernel frees when their holder ends: flock(2), one file per lock.

They are not leases. A lease that expires needs a clock, a renewal during a conversion of hours, and a
duration that is too short for a stopped process or too long after a killed one. The kernel knows when the
last descriptor is closed, so a waiter continues as soon as the holder has ended and never before. The
price is that a store's locks work on one machine only (and on file systems that implement flock).
"""

from __future__ import annotations

import fcntl
import os
from errno import EISDIR, ELOOP, ENOENT
from types import TracebackType

from .files import clear_the_way, store_error

__all__ = ["Lock"]


class Lock:
    """An advisory lock on a file of its own.

    The file may be removed by garbage collection; whoever gets the lock checks that the name
    still is the file that was locked, and tries again if not. Closed on exec. With `existing`
    nothing is written: there is a file, or there is no lock.
    """

    def __init__(self, path: str, *, shared: bool = False, existing: bool = False) -> None:
        self.path = path
        self._flags = os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_RDONLY if existing else os.O_RDWR | os.O_CREAT)
        self._mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Say whether this object holds the lock."""
        return self._fd is not None

    def acquire(self) -> None:
        """Wait for the lock. Raises StoreError where the lock file can't be made."""
        self._take(blocking=True)

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it; say whether it was taken."""
        return self.held or self._take(blocking=False)

    def _take(self, *, blocking: bool) -> bool:
        while True:
            fd = self._open()
            try:
                fcntl.flock(fd, self._mode | (0 if blocking else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(fd)
                return False
            except BaseException:
                os.close(fd)
                raise
            if self._still_named(fd):
                self._fd = fd
                return True
            os.close(fd)

    def _open(self) -> int:
        try:
            try:
                return os.open(self.path, self._flags, 0o644)
            except OSError as error:
                if not self._flags & os.O_CREAT or error.errno not in (ENOENT, EISDIR, ELOOP):
                    raise
                self._make_room(error.errno)
                return os.open(self.path, self._flags, 0o644)
        except OSError as error:
            raise store_error(error, self.path) from error

    def _make_room(self, number: int) -> None:
        if number == ENOENT:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
        elif number == EISDIR:
            clear_the_way(self.path)
        else:
            os.unlink(self.path)  # A link would have us make, and lock, another's file.

    def _still_named(self, fd: int) -> bool:
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return False
        mine = os.fstat(fd)
        return (named.st_ino, named.st_dev) == (mine.st_ino, mine.st_dev)

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back; with `remove` its file goes too (only ever by its holder)."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            if remove:
                os.unlink(self.path)
        except OSError:
            pass  # A lock file that stays is harmless.
        finally:
            os.close(fd)

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
