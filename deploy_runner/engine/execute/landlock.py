"""Landlock (Linux 5.13 and newer): which files a process may read and write, and whom it may signal.

By its three system calls; whatever the kernel's version lacks is left out. It also keeps a process from
reading another's memory or environment.
"""

from __future__ import annotations

import ctypes
import os
import stat as stat_module
import struct
from functools import cache

from .kernel import attempt, syscall

__all__ = ["Ruleset", "abi"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_VERSION_FLAG = 1

# linux/landlock.h: the access rights, and the ABI version that brought the later ones.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ALL_V1 = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_NET = 0b11
_SCOPES = 0b11
"""Abstract UNIX sockets and signals, ABI 6."""


@cache
def abi() -> int:
    """Return the kernel's landlock version, 0 where it has none."""
    with attempt():
        return syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    return 0


class Ruleset:
    """Rules that are gathered before they bind. Raises OSError where there is no landlock."""

    def __init__(self, *, network: bool) -> None:
        version = abi()
        # Device ioctls are left alone: a terminal's are harmless, and libraries probe them.
        self._rights = _ALL_V1 | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
        fields = [self._rights]
        if version >= 4:
            fields.append(0 if network else _NET)
        if version >= 6:
            fields.append(_SCOPES)
        attributes = struct.pack(f"{len(fields)}Q", *fields)
        self._fd = syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)

    def allow(self, path: str, *, write: bool = False) -> None:
        """Allow to read, or to read and write, a file or what is below a folder.

        A missing path needs no rule.
        """
        rights = self._rights if write else _READ
        with attempt():
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                if not stat_module.S_ISDIR(os.fstat(fd).st_mode):
                    rights &= _FILE_ONLY
                syscall(_ADD_RULE, self._fd, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
            finally:
                os.close(fd)

    def restrict(self) -> None:
        """Bind this process and its children for good; it has given up new privileges before."""
        try:
            syscall(_RESTRICT_SELF, self._fd, 0)
        finally:
            os.close(self._fd)
