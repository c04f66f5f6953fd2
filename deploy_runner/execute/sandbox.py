"""Confine a worker: which files it may read and write, and no network.

Landlock (Linux 5.13 and newer) is used by its three system calls, a network namespace where one
may be made, and resource limits everywhere. Where there is no landlock, the disk is mounted
read-only but for the workdir. Whatever the kernel lacks is left out and said.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import os
import resource
import site
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache

from ..installed import distributions
from .mounts import can_mount, mount_read_only

__all__ = ["Sandbox", "available", "interpreter_paths", "warm_up"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_VERSION_FLAG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000

# linux/landlock.h: the access rights, and the ABI version that brought the later ones.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ALL_V1 = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_NET = 0b11

_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc", "/proc", "/sys", "/opt")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/shm", "/dev/tty")


def available() -> str:
    """Return in words what a Sandbox can use on this machine; this process is not confined."""
    abi = _abi()
    files = f"landlock (ABI {abi})" if abi else _without_landlock()
    return f"{files}; {'no network in workers' if abi >= 4 or os.geteuid() == 0 else 'network open'}"


def _without_landlock() -> str:
    guards = (
        "read-only mounts and Python's audit hook guard" if can_mount() else "only Python's audit hook guards"
    )
    return f"no landlock: {guards} files"


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _abi() -> int:
    """Return the kernel's landlock version, 0 where it has none."""
    version: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    return max(version, 0)


@cache
def interpreter_paths() -> tuple[str, ...]:
    """Return the folders of the interpreter, its libraries and installed packages."""
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    found |= set(site.getsitepackages()) | {os.path.dirname(os.path.realpath(sys.executable))}
    found |= {os.path.dirname(p) for p in _engine_paths()}
    found |= {folder for folder in sys.path if _holds_installed(folder)}
    there = sorted(p for p in found if p and p != "/" and os.path.exists(p))
    kept: list[str] = []
    for path in there:
        if not path.startswith(tuple(f"{known}/" for known in (*kept, *_SYSTEM))):
            kept.append(path)
    return tuple(kept)


def _holds_installed(folder: str) -> bool:
    """Say whether packages were installed into a folder of the path; others are read file by file."""
    return any(path.endswith(".dist-info") for path in distributions(folder).values())


def _engine_paths() -> Iterator[str]:
    for name in ("deploy_runner", "deploy_runner.stages"):
        yield str(importlib.import_module(name).__file__)


def warm_up() -> None:
    """Find out what every worker needs to know, before they are forked."""
    interpreter_paths()
    # Python lists each folder of its path once; a worker may read some files of a folder, not list it.
    importlib.machinery.PathFinder.find_spec("deploy_runner_lists_every_folder")
    _abi()


class Sandbox:
    """The confinement of one process, made ready before it is known what it will run.

    What takes time, the network namespace and the rules for the system's folders, is done when
    the object is made; `close_up` adds the stage's own paths and confines for good. Nothing is
    raised for what the kernel doesn't have.
    """

    def __init__(self, *, network: bool) -> None:
        self.used: list[str] = []
        self.guards_files = False
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._abi = _abi()
        if not network and _leave_network():
            self.used.append("network namespace")
        self._rights = _rights(self._abi)
        self._ruleset = self._begin(network=network) if self._abi else -1

    def _begin(self, *, network: bool) -> int:
        net = _NET if not network else 0
        attributes = struct.pack("Q", self._rights)
        if self._abi >= 4:
            attributes = struct.pack("QQ", self._rights, net)
        ruleset: int = _libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
        if ruleset >= 0:
            for path in (*_SYSTEM, *interpreter_paths()):
                _allow(ruleset, path, _READ & self._rights)
            for path in _DEVICES:
                _allow(ruleset, path, self._rights)
        return ruleset

    def close_up(self, *, read: Iterable[str], write: Iterable[str]) -> list[str]:
        """Confine this process and its children; return what was used, in words.

        It may read the system, the interpreter and `read`, and write below `write`.
        """
        if self._ruleset >= 0:
            for path in read:
                _allow(self._ruleset, path, _READ & self._rights)
            for path in write:
                _allow(self._ruleset, path, self._rights)
            _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            if _libc().syscall(_RESTRICT_SELF, self._ruleset, 0) == 0:
                self.used.append(f"landlock {self._abi}")
                self.guards_files = True
            os.close(self._ruleset)
        elif mount_read_only((*write, "/dev/shm")):
            self.used.append("read-only mounts")
        return self.used


def _rights(abi: int) -> int:
    """Return the access rights that a version of landlock knows.

    Device ioctls are left alone: a terminal's are harmless, and libraries probe them.
    """
    rights = _ALL_V1
    rights |= _REFER if abi >= 2 else 0
    rights |= _TRUNCATE if abi >= 3 else 0
    return rights


def _leave_network() -> bool:
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    return bool(_libc().unshare(flags) == 0)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # What isn't there needs no right.
    try:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):
            rights &= _FILE_ONLY
        rule = struct.pack("=Qi", rights, fd)
        _libc().syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)
