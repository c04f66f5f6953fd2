"""Once in the world: who makes an action has its lease in the shared cache, and others wait for the record.

A lease names its holder, and each holder has one heartbeat, an object that it writes again three times in the
length of a lease, however many actions it makes. A waiter compares no clocks: it takes over the lease of a
holder whose heartbeat it has seen unchanged for the length of a lease, by its own clock. That is done by
conditional writes, so only one does. A holder that was merely slow may continue: the record that comes last
replaces one that says the same. Where the remote knows no conditional writes, two may take over at once.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ..errors import DeployRunnerError
from .cas import Claim
from .link import Link, heartbeat_name, lease_name
from .remote import RemoteError, Taken

__all__ = ["Leases"]

_LEASE_OF_TIMEOUT = 3.0
"""A lease in time limits of a request: who can't write in three of them is taken for dead."""
_BEATS = 3
_POLL_S = (0.2, 2.0)
_AT_ONCE = 8
_LONGEST_LEASE_S = 600.0
_LONGEST_WAIT_S = 6 * 3600.0
"""The longest job of GitHub's machines. A lease that is renewed for longer is not waited for."""
_MOST_MISSED = 5
"""How often a conditional write may fail for a lease that is gone or dead: then the remote is wrong."""


class Leases:
    """The claims of one run. Requests are made by threads: `ask` never waits.

    `is_made` is asked whether the record of a key is there; its second argument says whether another machine
    has been waited for. `tell` is called when a claim's answer has changed.
    """

    def __init__(self, link: Link, is_made: Callable[[str, bool], bool], tell: Callable[[], None]) -> None:
        self._link = link
        self._is_made = is_made
        self._tell = tell
        self._length_s = link.spec.timeout_s * _LEASE_OF_TIMEOUT
        self.id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self._claims: dict[str, _Claimed] = {}
        self._leaving: set[str] = set()
        self._changed = threading.Condition()
        self._ended = False
        self._beats = 0
        self._beaten_s = 0.0
        self._beating = threading.Lock()
        self._lapsed = False
        self._broken = False
        self._deletes = True
        self._thread: threading.Thread | None = None
        self._failure: DeployRunnerError | None = None

    def ask(self, key: str) -> Claim:
        """Say how it stands with an action; the first time it is asked for begins to claim it.

        Raises RequiredError where the cache is required and has failed, StoreError where the store has.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._broken:
                return "ours"
            if key in self._leaving:
                return "asked"  # The last claim of this process is being given up.
            if key not in self._claims:
                self._claims[key] = _Claimed()
                self._start()
                self._changed.notify_all()
            return self._claims[key].state

    def release(self, key: str) -> None:
        """Give a claim up: its record is there, or will never be."""
        with self._changed:
            claimed = self._claims.pop(key, None)
            if claimed is None or not claimed.etag:
                return  # A lease that is being written is given up by who writes it.
            self._leaving.add(key)
        try:
            self._remove([key])
        finally:
            with self._changed:
                self._leaving.discard(key)

    def close(self) -> None:
        """Give up everything."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            held = [key for key, claimed in self._claims.items() if claimed.etag]
            self._claims.clear()
        if held:
            self._remove(held)
        if self._beats:
            self._delete([heartbeat_name(self.id)])

    def _remove(self, keys: Iterable[str]) -> None:
        """Remove leases, but for those that another machine has taken over meanwhile."""
        lapsed = self._lapsed or _now_s() - self._beaten_s >= self._length_s
        self._delete([lease_name(key) for key in keys if not lapsed or self._is_still_ours(key)])

    def _is_still_ours(self, key: str) -> bool:
        try:
            found = self._link.remote.read(lease_name(key))
        except RemoteError:
            return False
        return found is not None and _Lease.of(found[0]).holder == self.id

    def _delete(self, names: list[str]) -> None:
        """Remove what others would otherwise wait for a while: where that fails, they do."""
        if names and self._deletes:
            try:
                self._link.remote.delete(names)
            except RemoteError:
                self._deletes = False

    # The thread ------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._go, name="leases", daemon=True)
            self._thread.start()

    def _go(self) -> None:
        with ThreadPoolExecutor(_AT_ONCE, "leases") as pool:
            try:
                while not self._ended:
                    beat, due = self._wait_for_work()
                    if beat:
                        self._link.attempt("written", self._beat, None)
                    changed = list(pool.map(lambda one: self._advance(*one), due))
                    if any(changed):
                        self._tell()
            except DeployRunnerError as error:
                self._failure = error
                self._tell()
            except BaseException:
                self._broken = True  # Whoever waits makes it, and the error is shown.
                self._tell()
                raise

    def _wait_for_work(self) -> tuple[bool, list[tuple[str, _Claimed]]]:
        """Wait until a heartbeat is due, or a step of claims; few at once, so that no heartbeat is late."""
        with self._changed:
            while not self._ended:
                now = _now_s()
                open_ = [(k, c) for k, c in self._claims.items() if c.state not in ("ours", "made")]
                due = sorted((one for one in open_ if one[1].due_s <= now), key=lambda one: one[1].due_s)
                moments = [c.due_s for _, c in open_]
                beat_s = float("inf")
                if self._link.works("written") and any(c.etag for c in self._claims.values()):
                    beat_s = self._beaten_s + self._length_s / _BEATS
                    moments.append(beat_s)
                if due or beat_s <= now:
                    return beat_s <= now, due[:_AT_ONCE]
                self._changed.wait(max(0.0, min(moments) - now) if moments else None)
        return False, []

    def _beat(self) -> None:
        """Write the heartbeat; take notice where others may have taken this machine for dead before that."""
        before_s, self._beaten_s = self._beaten_s, _now_s()
        self._link.remote.write(heartbeat_name(self.id), json.dumps({"beat": self._beats}).encode())
        self._beats += 1
        with self._changed:
            held_since_s = min((c.held_s for c in self._claims.values() if c.etag), default=_now_s())
        self._lapsed |= _now_s() - max(before_s, held_since_s) >= self._length_s

    def _advance(self, key: str, claimed: _Claimed) -> bool:
        """Take one step towards a claim, and say whether it changed; where the remote fails it is ours."""
        before = claimed.state
        try:
            if not self._link.works("read") or claimed.missed > _MOST_MISSED:
                claimed.state = "ours"
            elif self._link.pushes and self._link.works("written"):
                self._claim(key, claimed)
            else:
                self._look(key, claimed)
                if claimed.gone or claimed.dead:
                    waited = claimed.gone and before == "theirs"
                    claimed.state = "made" if self._is_made(key, waited) else "ours"
        except RemoteError as error:
            claimed.state = "ours"
            self._link.refuse("written" if claimed.writing else "read", error)
        claimed.writing = False
        claimed.due_s = _now_s() + claimed.pause_s()
        return claimed.state != before

    def _claim(self, key: str, claimed: _Claimed) -> None:
        if claimed.state == "asked" or claimed.gone:
            claimed.writing = True
            with self._beating:
                if not self._beats:
                    self._beat()
            if self._take(key, claimed, new=True):
                return
        self._look(key, claimed)
        if claimed.gone:
            if claimed.state == "theirs" and self._is_made(key, True):
                claimed.state = "made"
            claimed.missed += 1
        elif claimed.dead and claimed.state == "theirs":
            claimed.missed += not self._take(key, claimed, etag=claimed.etag_seen)

    def _take(self, key: str, claimed: _Claimed, *, new: bool = False, etag: str = "") -> bool:
        """Write a lease if nobody else has meanwhile. It is ours then, unless the record is there."""
        content = _Lease(self.id, socket.gethostname(), self._length_s).content()
        claimed.writing = True
        try:
            etag = self._link.remote.write(lease_name(key), content, new=new, etag=etag)
        except Taken:
            claimed.writing = False
            return False
        claimed.writing = False
        self._hold(key, claimed, etag)
        return True

    def _hold(self, key: str, claimed: _Claimed, etag: str) -> None:
        with self._changed:
            dropped = self._claims.get(key) is not claimed
            claimed.etag, claimed.held_s = etag or "*", _now_s()
        if dropped:
            self._remove([key])
        else:
            claimed.state = "made" if self._is_made(key, False) else "ours"

    def _look(self, key: str, claimed: _Claimed) -> None:
        """See how it stands with the lease of another machine, and with the record that it is to make."""
        found = self._link.remote.read(lease_name(key))
        claimed.gone = found is None
        if found is None:
            return
        lease = _Lease.of(found[0])
        if lease.holder == self.id:  # It was written, and the answer was lost.
            self._hold(key, claimed, found[1])
            return
        beat = self._link.remote.read(heartbeat_name(lease.holder))
        if self._is_made(key, False):
            claimed.state = "made"
            return
        claimed.state = "theirs"
        claimed.see(found[1], beat[1] if beat else "", max(lease.length_s, self._length_s))


class _Lease(NamedTuple):
    """What is written into a lease. `length_s` is the holder's: it beats by that, whatever a waiter has."""

    holder: str
    host: str
    length_s: float

    def content(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    @classmethod
    def of(cls, content: bytes) -> _Lease:
        """Return what a lease says; nobody holds it where that is not what this module writes."""
        try:
            value = json.loads(content)
            holder, host, length_s = str(value["holder"]), str(value["host"]), float(value["length_s"])
        except (ValueError, KeyError, TypeError):
            return cls("nobody", "", 0.0)
        if not holder.replace("-", "").replace(".", "").replace("_", "").isalnum():
            return cls("nobody", "", 0.0)
        return cls(holder, host, min(max(0.0, length_s), _LONGEST_LEASE_S))


class _Claimed:
    """How far one claim is."""

    def __init__(self) -> None:
        self.state: Claim = "asked"
        self.etag = ""
        self.held_s = 0.0
        self.gone = False
        self.dead = False
        self.writing = False
        self.missed = 0
        self.etag_seen = ""
        self.due_s = 0.0
        self._seen: tuple[str, str] = ("", "")
        self._seen_s = 0.0
        self._since_s = 0.0
        self._pause_s = _POLL_S[0]

    def see(self, lease: str, beat: str, length_s: float) -> None:
        """Take notice of another's lease and heartbeat, by their etags."""
        now = _now_s()
        if (lease, beat) != self._seen:
            self._seen, self._seen_s, self.etag_seen, self.missed = (lease, beat), now, lease, 0
        self._since_s = self._since_s or now
        self.dead = now - self._seen_s >= length_s or now - self._since_s >= _LONGEST_WAIT_S

    def pause_s(self) -> float:
        """Return how long to wait before the next look: longer each time, and not in step with others."""
        if self.gone and self.missed < 2:
            return 0.0
        self._pause_s = min(self._pause_s * 1.5, _POLL_S[1])
        return self._pause_s * random.uniform(0.7, 1.0)


def _now_s() -> float:
    """Return a clock that nobody sets, and that runs while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
