"""The system calls of confinement that Python has no function for; each raises OSError."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

__all__ = ["NEWIPC", "NEWNET", "NEWNS", "NEWPID", "attempt", "bind", "enter_user_namespace", "make_read_only",
           "make_writable", "mount", "prctl", "release", "return_to", "succeeds", "syscall",
           "unshare"]  # fmt: skip

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_MS_BIND, _MS_REC = 1 << 12, 1 << 14
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY = 442, -100, 0x8000, 1


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *given: object) -> int:
    """Make a system call by its number, which is the same on every architecture since 424."""
    return _checked(_libc().syscall(number, *given))


def prctl(option: int, *given: object) -> int:
    """Call prctl(2)."""
    return _checked(_libc().prctl(option, *given, *[0] * (4 - len(given))))


def unshare(flags: int) -> None:
    """Leave namespaces for new ones; that of processes is for children only."""
    _checked(_libc().unshare(flags))


def return_to(namespace: int, flags: int) -> None:
    """Enter the namespace of an open descriptor, by setns(2)."""
    _checked(_libc().setns(namespace, flags))


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """Call mount(2)."""
    _checked(_libc().mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()))


def bind(source: str, target: str) -> None:
    """Make a file or folder visible at another place too, with what is mounted in it."""
    mount(source, target, "none", _MS_BIND | _MS_REC)


def make_read_only(path: str) -> None:
    """Make a mount and all below it read-only, by mount_setattr(2) (Linux 5.12)."""
    _set_attributes(path, _AT_RECURSIVE, set_=_ATTR_RDONLY, clear=0)


def make_writable(path: str) -> None:
    """Make one mount writable again."""
    _set_attributes(path, 0, set_=0, clear=_ATTR_RDONLY)


def _set_attributes(path: str, flags: int, *, set_: int, clear: int) -> None:
    attributes = struct.pack("QQQQ", set_, clear, 0, 0)
    size = ctypes.c_size_t(len(attributes))
    syscall(_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, attributes, size)


def enter_user_namespace() -> None:
    """Enter a user namespace of this process's own, in which it has all capabilities and its own user id."""
    user, group = os.geteuid(), os.getegid()
    unshare(NEWUSER)
    rows = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    for name, text in rows.items():
        with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
            file.write(text)


def release() -> tuple[int, int]:
    """Return the kernel's version, (0, 0) where it isn't told."""
    with suppress(ValueError):
        major, minor = os.uname().release.split(".")[:2]
        return int(major), int("".join(c for c in minor if c.isdigit()))
    return 0, 0


@contextmanager
def attempt() -> Iterator[None]:
    """Try what the kernel may not have, or not allow."""
    with suppress(OSError, AttributeError):
        yield


def succeeds(act: Callable[[], None]) -> bool:
    """Say whether something works here, by trying it in a child: done by halves it can't be undone."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0
