"""Where the kernel has no landlock: mount the whole disk read-only for this process, but for its workdir.

A mount namespace of the process's own (Linux 3.8), made read-only at once by mount_setattr(2) (Linux
5.12). The capability to mount is given up afterwards, so that what runs next can't undo it. Reading is
not confined by this.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from functools import cache

__all__ = ["can_mount", "mount_read_only"]

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY = 442, -100, 0x8000, 1
_CAP_SYS_ADMIN, _CAPABILITIES_V3 = 21, 0x20080522


def mount_read_only(writable: Iterable[str]) -> bool:
    """Leave this process only `writable` to write to; say whether that was possible.

    Where it is not, what has been mounted until then changes nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) and libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER):
        return False
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        return False
    places = [path for path in writable if os.path.isdir(path)]
    for path in places:
        if libc.mount(path.encode(), path.encode(), None, _MS_BIND, None):
            return False
    if not _set_read_only(libc, "/", recursive=True):
        return False
    writable_again = [_set_read_only(libc, path, read_only=False) for path in places]
    os.chdir(os.getcwd())  # The working folder is still the one below the mount.
    _give_up_mounting(libc)
    return all(writable_again)


@cache
def can_mount() -> bool:
    """Say whether `mount_read_only` works here, by trying it in a child."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if mount_read_only(()) else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


def _set_read_only(libc: ctypes.CDLL, path: str, *, read_only: bool = True, recursive: bool = False) -> bool:
    """Call mount_setattr(2) with struct mount_attr: attr_set, attr_clr, propagation, userns_fd."""
    set_, clear = (_ATTR_RDONLY, 0) if read_only else (0, _ATTR_RDONLY)
    attributes = struct.pack("QQQQ", set_, clear, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    done: int = libc.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, attributes, ctypes.c_size_t(len(attributes))
    )
    return done == 0


def _give_up_mounting(libc: ctypes.CDLL) -> None:
    """Drop CAP_SYS_ADMIN, which capset(2) keeps in the first of two words of 32 bits, for commands too."""
    pr_capbset_drop = 24
    libc.prctl(pr_capbset_drop, _CAP_SYS_ADMIN, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITIES_V3, 0)
    data = ctypes.create_string_buffer(24)
    if libc.capget(header, data) == 0:
        words = [word & ~(1 << _CAP_SYS_ADMIN) if i < 3 else word
                 for i, word in enumerate(struct.unpack("6I", data.raw))]  # fmt: skip
        libc.capset(header, struct.pack("6I", *words))
