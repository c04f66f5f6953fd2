"""Confine a worker: what it sees, reads and writes, whom it reaches, and how many processes it makes.

By namespaces (a root folder, processes, IPC and network of its own), landlock, resource limits and the
loss of all capabilities. Whatever the kernel lacks or doesn't allow is left out and said.
"""

from __future__ import annotations

import importlib.machinery
import os
import resource
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...errors import UsageError
from . import installation, landlock
from .kernel import NEWIPC, NEWNET, attempt, enter_user_namespace, release, unshare
from .privileges import DAC_OVERRIDE, SYS_ADMIN, drop_capabilities, holds, refuse_sockets
from .root import OwnRoot, resolved

__all__ = ["NOT_STARTED", "Confinement", "Sandbox", "warm_up"]

_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/tty")
_RESOLVER = "/etc/resolv.conf"
_PID_MAX = "/proc/sys/kernel/pid_max"
_RESERVED_PIDS = 300
_PID_MAX_IS_OWN, _PROCESSES_ARE_OWN = (6, 14), (5, 14)
"""The kernels since which a namespace of processes, and one of users, count their own processes."""


class Confinement(NamedTuple):
    """What a process was confined by, in words, and what it was not kept from."""

    used: tuple[str, ...]
    lacks: tuple[str, ...]

    def __str__(self) -> str:
        lacks = f"; not kept from {', '.join(self.lacks)}" if self.lacks else ""
        return ", ".join(self.used or ("nothing",)) + lacks

    def __bool__(self) -> bool:
        """Say whether anything was confined: a process that never came so far is not."""
        return self != NOT_STARTED

    @classmethod
    def from_json(cls, value: Sequence[Sequence[str]]) -> Confinement:
        """Return it from what JSON makes of it."""
        used, lacks = value
        return cls(tuple(used), tuple(lacks))

    def require(self) -> None:
        """Raise UsageError unless nothing is lacking."""
        if self.lacks:
            raise UsageError(
                f"this machine can't keep a stage from {', '.join(self.lacks)}, as --require-sandbox asks",
                fix="run where landlock and user namespaces are allowed, or without --require-sandbox",
            )


NOT_STARTED = Confinement((), ())


def warm_up() -> None:
    """Find out what every worker needs to know, before they are forked."""
    installation.hidden_among(_visible(), ())
    installation.inside(())
    # Python lists each folder of its path once; a worker may read some files of a folder, not list it.
    importlib.machinery.PathFinder.find_spec("deploy_runner_lists_every_folder")
    landlock.abi()
    for path in (*_visible(), *_DEVICES, _RESOLVER):
        resolved(path)


def _visible() -> tuple[str, ...]:
    """Return the folders of the system and of Python, which every worker sees."""
    return (*installation.SYSTEM, *installation.interpreter_paths(), sys.executable)


def most_processes() -> int:
    """Return how many processes and threads a worker may have: a pool for each processor, and many more."""
    return 512 + 4 * (os.cpu_count() or 1)


class Sandbox:
    """The confinement of one process, made ready before it is known what it will run.

    What takes time, the namespaces and the rules for the system's folders, is done when the object is
    made; `close_up` adds the stage's own paths and confines for good. Nothing is raised for what the
    kernel doesn't have. `own_processes` says that the process is in a namespace of processes. Afterwards
    `guards_files` says whether the kernel refuses other files, `refuses_sockets` whether it refuses even
    the UNIX sockets that the process makes itself.
    """

    def __init__(self, *, network: bool, own_processes: bool) -> None:
        self.guards_files = False
        self.refuses_sockets = False
        self._network = network
        self._own_processes = own_processes
        self._used: list[str] = []
        self._lacks: list[str] = []
        self._root: OwnRoot | None = None
        self._rules: landlock.Ruleset | None = None
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._network_left = not network and self._leave_network()
        with attempt():
            unshare(NEWIPC)
        self._limited = own_processes and _limit_pids()
        self._system = [*_visible(), *((_RESOLVER,) if network else ())]
        with attempt():
            self._root = OwnRoot((*self._system, *_DEVICES), own_processes=own_processes)
        with attempt():
            self._make_rules(self._system)

    def _make_rules(self, system: Iterable[str]) -> None:
        self._rules = landlock.Ruleset(network=self._network)
        self._allow(system, write=False)
        self._allow((*_DEVICES, *(() if self._root else ("/dev/shm",))), write=True)

    @property
    def has_own_root(self) -> bool:
        """Say whether the process has a root folder of its own, with shared memory that ends with it."""
        return self._root is not None

    def _leave_network(self) -> bool:
        with attempt():
            unshare(NEWNET)
            return True
        return False

    def _allow(self, paths: Iterable[str], *, write: bool) -> None:
        if self._rules is None:
            return
        for path in paths:
            for place in dict.fromkeys((path, installation.real(path))):
                self._rules.allow(self._root.inside(place) if self._root else place, write=write)

    def close_up(
        self,
        *,
        read: Iterable[str],
        write: Iterable[str],
        hide: Iterable[str] = (),
        devices: Sequence[str] = (),
    ) -> Confinement:
        """Confine this process and its children; return what was used, and what is lacking.

        It may read the system, the interpreter and `read`, write below `write`, and use `devices`. Of `hide`,
        wherever that lies, it sees no more than these name.
        """
        write = list(write)
        read = self._hide(list(read), hide)
        if self._root is not None:
            for path in (*sorted(read), *devices):
                self._root.show(path)
            self._root.seal(write)
        self._allow(read, write=False)
        self._allow((*write, *devices, *(("/dev/shm",) if self._root else ())), write=True)
        self._limit_processes()
        if self._root is not None:
            self._root.enter()
        self._give_up_privileges((*read, *write, *installation.interpreter_paths()))
        self._restrict()
        return Confinement(tuple(self._used), tuple(self._lacks))

    def _hide(self, read: list[str], hide: Iterable[str]) -> list[str]:
        """Take what is to be hidden out of what is visible; return what is still to be shown."""
        hidden = installation.hidden_among((*self._system, *read), hide)
        if not hidden:
            return read
        around = [path for path in read if installation.hidden_among([path], hidden)]
        read = [path for path in read if path not in around] + installation.inside(hidden)
        if self._root is not None:
            for path in around:
                self._root.show(path)
            for place in hidden:
                self._root.hide(place)
            return [*around, *read]
        with attempt():
            self._make_rules(_except(self._system, hidden))
        return [*_except(around, hidden), *read]

    def _limit_processes(self) -> None:
        """Limit an ordinary user's processes: root's can be limited in a namespace of processes only."""
        if os.geteuid():
            others = 0 if self._count_apart() else _processes_of(os.getuid())
            hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
            limit = others + most_processes()
            limit = limit if hard == resource.RLIM_INFINITY else min(hard, limit)
            resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
            self._limited = True
        if self._limited:
            self._used.append(f"at most {most_processes()} processes")
        else:
            self._lacks.append("making processes without end")

    def _count_apart(self) -> bool:
        """Enter a user namespace in which this process's children are counted alone; say whether it is."""
        with attempt():
            if holds(SYS_ADMIN) and release() >= _PROCESSES_ARE_OWN:
                enter_user_namespace()
                return True
        return False

    def _give_up_privileges(self, needed: Iterable[str]) -> None:
        # Root reads a project of another user, and without a root of its own passes folders to its workdir.
        passes = not os.geteuid() and (self._root is None or any(map(_is_closed, needed)))
        if not drop_capabilities(keep=DAC_OVERRIDE if passes else None):
            self._lacks.append("using capabilities")
        else:
            self._used.append("no capability but to read any file it sees" if passes else "no capabilities")

    def _restrict(self) -> None:
        version = 0
        if self._rules is not None:
            with attempt():
                self._rules.restrict()
                version = landlock.abi()
                self._used.insert(0, f"landlock {version}")
        self._say_what_of_files(version)
        self._say_what_of_processes(version)
        self._refuse_sockets(version)

    def _say_what_of_files(self, version: int) -> None:
        self.guards_files = bool(version or self._root)
        if self._root is not None:
            self._used.insert(0, "a root folder of its own")
        elif not version:
            self._lacks.insert(0, "files, but for Python's audit hook")

    def _say_what_of_processes(self, version: int) -> None:
        if self._own_processes and self._root is not None and not self._root.shows_processes:
            self._used.append("processes of its own")
            return
        self._used.append("its descendants are ended with it")
        if version < 6 and not self._own_processes:
            self._lacks.append("signalling other processes")
        if not version:
            self._lacks.append("looking at other processes")

    def _refuse_sockets(self, version: int) -> None:
        """Refuse the sockets that neither the root folder nor the network's namespace keeps away."""
        everywhere = self._network or self._network_left
        refused = self._root is not None and everywhere
        if not refused:
            with attempt():
                refuse_sockets(every=not everywhere)
                refused = self.refuses_sockets = True
        if not self._network and (refused or self._network_left):
            self._used.append("no network")
        elif not self._network:
            self._lacks.append("the network" if version < 4 else "the network by UDP")
        if not refused:
            self._lacks.append("UNIX sockets")
        elif self._root is None:
            self._used.append("no UNIX sockets")
        elif self._network and version < 6:
            self._lacks.append("abstract UNIX sockets")


def _except(paths: Iterable[str], hidden: Sequence[str]) -> list[str]:
    return [part for path in paths for part in installation.without(os.path.realpath(path), hidden)]


def _limit_pids() -> bool:
    """Limit the process ids of this process's own namespace; say whether it has a limit of its own."""
    if release() < _PID_MAX_IS_OWN:
        return False  # The limit would be the machine's.
    with attempt(), open(_PID_MAX, "w", encoding="utf-8") as file:
        file.write(str(_RESERVED_PIDS + most_processes()))
        return True
    return False


def _processes_of(user: int) -> int:
    """Return how many processes and threads a user has on this machine."""
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with attempt():
                if os.stat(f"/proc/{name}").st_uid == user:
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _is_closed(path: str) -> bool:
    """Say whether a path belongs to another user than root, who lets nobody else read it."""
    with attempt():
        found = os.stat(path)
        return bool(found.st_uid and not found.st_mode & 0o004)
    return False
