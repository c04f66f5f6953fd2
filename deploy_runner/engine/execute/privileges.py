"""What a process gives up for good: capabilities, new privileges, and sockets that nothing else refuses."""

from __future__ import annotations

import ctypes
import os
import struct

from .kernel import attempt, prctl

__all__ = ["DAC_OVERRIDE", "SYS_ADMIN", "drop_capabilities", "holds", "refuse_sockets"]

DAC_OVERRIDE, SYS_ADMIN = 1, 21
_CAPABILITIES_V3 = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 38, 47
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_AMBIENT_CLEAR_ALL = 4
_MOST_CAPABILITIES = 64

# linux/audit.h and the system call tables: (AUDIT_ARCH, socket, socketpair, io_uring_setup).
_ARCHITECTURES = {"x86_64": (0xC000003E, 41, 53, 425), "aarch64": (0xC00000B7, 198, 199, 425)}
_X32 = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1
"""SECCOMP_RET_ALLOW, and SECCOMP_RET_ERRNO with EPERM."""
_AF_UNIX, _SOCK_DGRAM, _TYPES = 1, 2, 0xF


def holds(capability: int) -> bool:
    """Say whether this process has a capability."""
    data = ctypes.create_string_buffer(24)
    header = struct.pack("Ii", _CAPABILITIES_V3, 0)
    with attempt():
        ctypes.CDLL(None).capget(header, data)
    return bool(struct.unpack("6I", data.raw)[3 * (capability // 32)] >> capability % 32 & 1)


def drop_capabilities(*, keep: int | None = None) -> bool:
    """Give up every capability but one, and all that a program could bring; say whether that holds."""
    with attempt():
        prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    with attempt():
        for capability in range(_MOST_CAPABILITIES):
            if capability != keep:
                prctl(_PR_CAPBSET_DROP, capability)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    kept = 1 << keep if keep is not None and holds(keep) else 0
    header = struct.pack("Ii", _CAPABILITIES_V3, 0)
    return bool(ctypes.CDLL(None).capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)) == 0)


def refuse_sockets(*, every: bool) -> None:
    """Refuse UNIX sockets, or every one, to this process and its children, but for connected pairs.

    By a seccomp filter. It refuses also pairs of datagram sockets, which send to any path, io_uring, which
    makes sockets past it, and other architectures' calls. New privileges have been given up before.
    Raises OSError where the kernel has no such filters.
    """
    if os.uname().machine not in _ARCHITECTURES:
        raise OSError(38, "the system calls of this architecture are not known")
    architecture, socket, socketpair, uring = _ARCHITECTURES[os.uname().machine]
    number, arch, domain, kind = 0, 4, 16, 24
    rows = [
        (_LOAD, 0, 0, arch),
        (_EQUAL, 0, 11, architecture),
        (_LOAD, 0, 0, number),
        (_AT_LEAST, 9, 0, _X32),
        (_EQUAL, 8, 0, uring),
        (_EQUAL, 0, 2, socket),
        (_LOAD, 0, 0, domain),
        (_AT_LEAST if every else _EQUAL, 5, 4, 0 if every else _AF_UNIX),
        (_EQUAL, 0, 3, socketpair),
        (_LOAD, 0, 0, kind),
        (_AND, 0, 0, _TYPES),
        (_EQUAL, 1, 0, _SOCK_DGRAM),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rows), ctypes.addressof(program)))
    prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_)
