"""Write files so that a crash leaves the old content or the new one, and copy them privately."""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreError

__all__ = [
    "NEW", "clear_the_way", "clone", "copy_private", "fsync_folder", "open_regular", "read_existing",
    "read_or_none", "refuse_exhaustion", "remove_whatever", "store_error", "write_atomic", "write_once",
    "writing",
]  # fmt: skip

NEW = ".new"
"""Ends the name of a file that is being written."""

_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL})
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_FICLONE = 0x40049409
_CHUNK_BYTES = 1 << 30
_PART_BYTES = 1 << 16

_OWN_PLACE = "set DEPLOY_RUNNER_HOME to a folder that can be written"
_NOT_OURS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_FIXES = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space and run again",
    errno.ENOTDIR: "a file is where a folder is needed",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files",
}


def store_error(error: OSError, path: str | os.PathLike[str], otherwise: str = _OWN_PLACE) -> StoreError:
    """Return the sentence for a failed operation on a file; `otherwise` is for a lack of permission."""
    fix = otherwise if error.errno in _NOT_OURS else _FIXES.get(error.errno or 0, "")
    return StoreError(f"{os.fspath(path)}: {error.strerror or error}", fix=fix)


@contextmanager
def writing(path: str | os.PathLike[str], otherwise: str = _OWN_PLACE) -> Iterator[None]:
    """Raise StoreError, which names the path, in place of OSError; `otherwise` is as in `store_error`."""
    try:
        yield
    except OSError as error:
        raise store_error(error, path, otherwise) from error


def write_atomic(
    path: Path, data: bytes, *, mode: int = 0o644, tmp: Path | None = None, durable: bool = True
) -> None:
    """Replace `path` by `data`: temporary file, fsync, rename, fsync of the folder.

    The temporary file is made in `tmp` (a folder of the same disk that `Store.sweep_tmp` sweeps), or
    beside `path`. Parent folders are made. What is not `durable` isn't synced: after a loss of power it
    may be old or empty. Raises StoreError, and leaves no temporary file, where that fails.
    """
    _write(path, data, mode, tmp, _rename, durable=durable)


def write_once(path: Path, data: bytes, *, mode: int, tmp: Path) -> None:
    """Write `path` as `write_atomic` does, unless it exists. Raises StoreError."""
    _write(path, data, mode, tmp, _link)


def _write(
    path: Path,
    data: bytes,
    mode: int,
    tmp: Path | None,
    place: Callable[[str, str], None],
    *,
    durable: bool = True,
) -> None:
    name = os.fspath(path)
    folder = os.path.dirname(name) or "."
    try:
        temporary, fd = _create(os.fspath(tmp) if tmp else folder, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                # Before the rename: a disk may write the new name before the data, and a loss of power
                # between the two would leave an empty file under a name that promises content.
                os.fsync(fd)
            place(temporary, name)
        except BaseException:
            _remove(temporary)
            raise
        finally:
            os.close(fd)
        if durable:
            # After it: a rename is a change of the folder, and is not on the disk until that is synced.
            fsync_folder(folder)
    except OSError as error:
        raise store_error(error, name) from error


def _create(folder: str, mode: int) -> tuple[str, int]:
    """Return a new file, locked: a sweep removes only what nobody has locked."""
    import fcntl

    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        temporary = f"{folder}/{os.getpid()}-{os.urandom(4).hex()}{NEW}"
        try:
            fd = os.open(temporary, flags, mode)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return temporary, fd
        os.close(fd)  # A sweep took it for a dead one's before it was locked.


def _rename(temporary: str, name: str) -> None:
    try:
        os.rename(temporary, name)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        os.rename(temporary, name)
    except IsADirectoryError:
        clear_the_way(name)
        os.rename(temporary, name)


def _link(temporary: str, name: str) -> None:
    """Give the file its name unless another process was first: link(2) fails where the name is taken."""
    with suppress(FileExistsError):
        os.link(temporary, name)
    _remove(temporary)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: str, flags: int) -> int:
    """Open a regular file, as `open` takes it for its `opener`: a pipe in its place would wait for ever."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat_module.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return fd


def read_or_none(path: str | os.PathLike[str]) -> bytes | None:
    """Return a regular file's content, or None where it is absent, unreadable or something else.

    Raises StoreError where this process can't open files any more.
    """
    try:
        return _content(path)
    except OSError as error:
        refuse_exhaustion(error, path)
        return None


def read_existing(path: str | os.PathLike[str]) -> bytes | None:
    """Return a regular file's content, or None where there is no such. Raises StoreError for one unread."""
    try:
        return _content(path)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise store_error(error, path) from error
        return None


def _content(path: str | os.PathLike[str]) -> bytes:
    fd = open_regular(os.fspath(path), os.O_RDONLY)  # Not `open`: its buffers cost more than a small file.
    try:
        parts = []
        while part := os.read(fd, _PART_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def refuse_exhaustion(error: OSError, path: str | os.PathLike[str]) -> None:
    """Raise StoreError where not the file is at fault but this process: what it can't open may be there."""
    if error.errno in _EXHAUSTED:
        raise store_error(error, path) from error


def remove_whatever(path: str) -> None:
    """Remove what stands under the name of one of our files, a folder too. Raises OSError."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        clear_the_way(path)


def clear_the_way(path: str) -> None:
    """Remove a folder that stands where one of our files belongs. Raises OSError where that fails."""
    import shutil

    aside = f"{path}.{os.urandom(4).hex()}{NEW}"
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def clone(fd_in: int, fd_out: int) -> bool:
    """Have a new file share an open one's blocks until one is written; say whether the disk can do that."""
    import fcntl

    with suppress(OSError):
        fcntl.ioctl(fd_out, _FICLONE, fd_in)
        return True
    return False


def copy_private(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    mode: int,
    share: Callable[[int, int], bool] = clone,
) -> None:
    """Have a new file with a file's content: what `share` makes of the two where it can, else a copy.

    Never a link: who writes the copy must not change the original. Raises OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd_in = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fd_out = os.open(target, flags, mode)
        try:
            if not share(fd_in, fd_out):
                _copy_content(fd_in, fd_out)
        finally:
            os.close(fd_out)
    finally:
        os.close(fd_in)


def _copy_content(fd_in: int, fd_out: int) -> None:
    try:
        while os.copy_file_range(fd_in, fd_out, _CHUNK_BYTES):
            pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.lseek(fd_in, 0, os.SEEK_SET)
        os.lseek(fd_out, 0, os.SEEK_SET)
        while chunk := os.read(fd_in, 1 << 20):
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd_out, view) :]
