"""Fork a process of which nothing outlives it, and no process outside is within its reach.

Where there may be a namespace of processes the kernel ends every descendant, once the namespace's first
process ends, which waits for the one that works; otherwise a subreaper does. Root's parent makes the first
process itself; others may not come back from the new namespace, so that a supervisor in between makes it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple, NoReturn, TypeVar

from .kernel import NEWPID, attempt, enter_user_namespace, prctl, return_to, succeeds, unshare
from .privileges import SYS_ADMIN, holds
from .sandbox import NOT_STARTED, Confinement, Sandbox

__all__ = ["Ended", "end_children", "ended", "fork", "prepare", "probe", "tell"]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_FAILED = 70
_LONGEST_BYTES = 1 << 16
_Work = Callable[[socket.socket, Sandbox], int]
_T = TypeVar("_T")


class Ended(NamedTuple):
    """How a forked process ended: its status as of waitpid(2), and how it had been confined."""

    status: int
    confinement: Confinement


def prepare() -> None:
    """Make this process, before it has threads, fit to fork supervised ones.

    It becomes the parent of what a killed supervisor leaves, and an ordinary user's gets a user
    namespace, in which it may make the others.
    """
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if not holds(SYS_ADMIN) and succeeds(enter_user_namespace):
        enter_user_namespace()


@cache
def _comes_back() -> bool:
    """Say whether this process may make children in a new namespace of processes, and then others here."""
    return holds(SYS_ADMIN) and succeeds(lambda: _apart(lambda here: None))


def _apart(act: Callable[[int], _T]) -> _T:
    """Do something while the children of this process are those of a new namespace of processes.

    It gets the descriptor of the present one, which no child is to keep.
    """
    here = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(NEWPID)
        try:
            return act(here)
        finally:
            return_to(here, NEWPID)
    finally:
        os.close(here)


def fork(work: _Work, *, network: bool, close: Callable[[], None]) -> tuple[int, socket.socket]:
    """Fork; `work` gets a socket to here and its sandbox, and the process ends with what it returns.

    Returns the process id of what stands in between, which is that of the whole process group, and our end
    of the socket. `close` drops in the child what isn't its own. Raises OSError where no process can be made.
    """
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)

    def supervise(here: int = -1) -> int:
        apart = here >= 0
        if apart:
            os.close(here)
        ours.close()
        close()
        _lead()
        act = _watch if apart else _supervise
        return act(theirs, work, network=network)

    with theirs:
        try:
            if _comes_back():
                return _apart(lambda here: _child(lambda: supervise(here))), ours
            return _child(supervise), ours
        except OSError:
            ours.close()
            raise


def tell(channel: socket.socket, confinement: Confinement) -> None:
    """Tell the parent how this process is confined, once, before it runs what isn't trusted."""
    with channel, suppress(OSError):
        channel.send(json.dumps({"confinement": confinement}).encode())


def ended(ours: socket.socket, status: int) -> Ended:
    """Return how a process ended whose supervisor has been waited for, with this status."""
    said: dict[str, Any] = {}
    with ours, suppress(OSError):
        while data := ours.recv(_LONGEST_BYTES, socket.MSG_DONTWAIT):
            said |= json.loads(data)
    return Ended(said.get("status", status), Confinement.from_json(said.get("confinement", NOT_STARTED)))


def _lead() -> None:
    """Begin the process group, which ends with the parent."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # It is for the worker, which is in the same group.
    os.setsid()
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _supervise(channel: socket.socket, work: _Work, *, network: bool) -> int:
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    apart = False
    with attempt():
        unshare(NEWPID)
        apart = True
    if apart:
        _wait_for(_child(lambda: _watch(channel, work, network=network)))
    else:
        _watch(channel, work, network=network, apart=False)
        end_children()
    return 0


def _watch(channel: socket.socket, work: _Work, *, network: bool, apart: bool = True) -> int:
    """Run the worker and say how it ended. As a namespace's first process it takes the others with it."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    sandbox = Sandbox(network=network, own_processes=apart)
    status = _wait_for(_child(lambda: _work(channel, work, sandbox)))
    with suppress(OSError):  # The parent has ended, or has let a spare one go.
        channel.send(json.dumps({"status": status}).encode())
    return 0


def _work(channel: socket.socket, work: _Work, sandbox: Sandbox) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return work(channel, sandbox)


def _child(run: Callable[[], int]) -> int:
    """Fork a process that does nothing but `run`, and return its id."""
    pid = os.fork()
    if pid == 0:
        _end_with(run)
    return pid


def _end_with(run: Callable[[], int]) -> NoReturn:
    code = _FAILED
    try:
        code = run()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        import sys

        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait_for(child: int) -> int:
    """Return a child's status, and reap orphans meanwhile."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return status


def end_children(known: Container[int] = ()) -> None:
    """Kill and reap the children of this process that are not `known`, and theirs, until none is left."""
    while orphans := [pid for pid in _children() if pid not in known]:
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in orphans:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> Iterator[int]:
    """Return the process ids whose parent is this process (proc(5): the fourth field, after the name)."""
    mine = str(os.getpid())
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                if file.read().rpartition(")")[2].split()[1] == mine:
                    yield int(name)


def probe() -> Confinement:
    """Return how a worker without network would be confined on this machine; this process is not changed."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            confinement = _tried()
            os.write(write_end, json.dumps(confinement).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        data = answer.read()
    os.waitpid(pid, 0)
    if not data:
        return Confinement((), ("no process can be created for a worker",))
    return Confinement.from_json(json.loads(data))


def _tried() -> Confinement:
    def confine(channel: socket.socket, sandbox: Sandbox) -> int:
        os.chdir("/")
        tell(channel, sandbox.close_up(read=(), write=()))
        return 0

    prepare()
    pid, ours = fork(confine, network=False, close=lambda: None)
    return ended(ours, os.waitpid(pid, 0)[1]).confinement
