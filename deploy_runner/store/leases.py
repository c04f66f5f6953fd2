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
from collections.abc import Callable
from typing import Literal

from .cas import Claim
from .link import Link, RequiredError
from .remote import RemoteError, Taken

__all__ = ["Leases"]

_LEASE_OF_TIMEOUT = 3.0
"""A lease in time limits of a request: who can't write in three of them is taken for dead."""
_BEATS = 3
_POLL_S = (0.2, 2.0)
_LONGEST_WAIT_S = 6 * 3600.0
"""The longest job of GitHub's machines. A lease that is renewed for longer is not waited for."""


class Leases:
    """The claims of one run. Requests are made by a thread: `ask` never waits."""

    def __init__(self, link: Link, is_made: Callable[[str], bool]) -> None:
        self._link = link
        self._is_made = is_made
        self._length_s = link.spec.timeout_s * _LEASE_OF_TIMEOUT
        self.id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self._claims: dict[str, _Claimed] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._beats = 0
        self._beaten_s = 0.0
        self._thread: threading.Thread | None = None
        self._failure: RequiredError | None = None
        self._wake: Callable[[], None] = lambda: None

    def ask(self, key: str) -> Claim:
        """Say how it stands with an action; the first time it is asked for begins to claim it.

        Raises RequiredError where the shared cache is required and has failed.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if key not in self._claims:
                self._claims[key] = _Claimed()
                self._start()
                self._changed.notify_all()
            return self._claims[key].state

    def listen(self, wake: Callable[[], None]) -> None:
        """Have `wake` called as soon as a claim has an answer; what was called before is not any more."""
        with self._changed:
            self._wake = wake

    def release(self, key: str) -> None:
        """Give a claim up: its record is there, or will never be."""
        with self._changed:
            claimed = self._claims.pop(key, None)
        stale = time.monotonic() - self._beaten_s > self._length_s  # It may be another's by now.
        if claimed is not None and claimed.etag and not stale:
            self._quietly(lambda: self._link.remote.delete([_lease(key)]))

    def close(self) -> None:
        """Give up everything."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        held = [_lease(key) for key, claimed in self._claims.items() if claimed.etag]
        beats = [_heartbeat(self.id)] if self._beats else []
        if held or beats:
            self._quietly(lambda: self._link.remote.delete([*held, *beats]))

    def _quietly(self, do: Callable[[], None]) -> None:
        self._link.attempt("written", do, None)

    # The thread ------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._go, name="leases", daemon=True)
            self._thread.start()

    def _go(self) -> None:
        while True:
            with self._changed:
                if self._ended:
                    return
                now = time.monotonic()
                due = [(k, c) for k, c in self._claims.items() if c.state != "ours" and c.due_s <= now]
                holding = any(c.etag for c in self._claims.values())
                beat = holding and now - self._beaten_s >= self._length_s / _BEATS
                if not due and not beat:
                    self._changed.wait(self._pause(now, holding=holding))
                    continue
            try:
                if beat:
                    self._quietly(self._beat)
                for key, claimed in due:
                    self._advance(key, claimed)
                    if claimed.state in ("ours", "made"):
                        with self._changed:
                            self._wake()
            except RequiredError as error:
                self._failure = error
                return

    def _pause(self, now: float, *, holding: bool) -> float | None:
        moments = [c.due_s for c in self._claims.values() if c.state not in ("ours", "made")]
        if holding:
            moments.append(self._beaten_s + self._length_s / _BEATS)
        return max(0.0, min(moments) - now) if moments else None

    def _beat(self) -> None:
        self._beats += 1
        self._beaten_s = time.monotonic()
        self._link.remote.write(_heartbeat(self.id), json.dumps({"beat": self._beats}).encode())

    def _advance(self, key: str, claimed: _Claimed) -> None:
        """Take one step towards a claim; where the remote fails the action is made here."""
        if claimed.state == "made":
            claimed.due_s = float("inf")
            return
        try:
            if not self._link.works("read"):
                claimed.state = "ours"
            elif self._writes:
                self._claim(key, claimed)
            else:
                self._look(key, claimed)
        except RemoteError as error:
            claimed.state = "ours"
            self._link.refuse("written" if claimed.writing else "read", error)
        claimed.writing = False
        claimed.due_s = time.monotonic() + claimed.pause_s()

    @property
    def _writes(self) -> bool:
        """Say whether this machine can still take a lease; else it waits for those of others alone."""
        return self._link.pushes and self._link.works("written")

    def _claim(self, key: str, claimed: _Claimed) -> None:
        if claimed.state == "asked" or claimed.gone:
            if not self._beats:
                claimed.writing = True
                self._beat()
            try:
                claimed.writing = True
                self._hold(key, claimed, self._write(key, new=True))
                return
            except Taken:
                claimed.writing = False
        if self._look(key, claimed) == "dead":
            try:
                claimed.writing = True
                self._hold(key, claimed, self._write(key, etag=claimed.seen_etag))
            except Taken:
                return

    def _write(self, key: str, *, new: bool = False, etag: str = "") -> str:
        content = json.dumps({"holder": self.id, "host": socket.gethostname()}).encode()
        return self._link.remote.write(_lease(key), content, new=new, etag=etag)

    def _hold(self, key: str, claimed: _Claimed, etag: str) -> None:
        """Take the claim, unless the record came between the last look and the lease."""
        claimed.etag = etag or "*"
        claimed.writing = False
        claimed.state = "made" if self._is_made(key) else "ours"

    def _look(self, key: str, claimed: _Claimed) -> Literal["gone", "alive", "dead"]:
        """See how it stands with the lease of another machine."""
        found = self._link.remote.read(_lease(key))
        claimed.gone = found is None
        if found is None:
            if claimed.state == "theirs" and self._is_made(key):
                claimed.state = "made"
            elif not self._writes:
                claimed.state = "ours"
            return "gone"
        claimed.state = "theirs"
        beat = self._link.remote.read(_heartbeat(_holder(found[0])))
        seen = (found[1], beat[1] if beat else "")
        now = time.monotonic()
        if seen != claimed.seen:
            claimed.seen, claimed.seen_s, claimed.seen_etag = seen, now, found[1]
        claimed.since_s = claimed.since_s or now
        if now - claimed.seen_s < self._length_s and now - claimed.since_s < _LONGEST_WAIT_S:
            return "alive"
        if not self._writes:
            claimed.state = "ours"
        return "dead"


class _Claimed:
    """How far one claim is."""

    def __init__(self) -> None:
        self.state: Claim = "asked"
        self.etag = ""
        self.gone = False
        self.writing = False
        self.seen: tuple[str, str] = ("", "")
        self.seen_etag = ""
        self.seen_s = 0.0
        self.since_s = 0.0
        self.due_s = 0.0
        self._pause_s = _POLL_S[0]

    def pause_s(self) -> float:
        """Return how long to wait before the next look: longer each time, and not in step with others."""
        self._pause_s = min(self._pause_s * 1.5, _POLL_S[1])
        return 0.0 if self.gone else self._pause_s * random.uniform(0.7, 1.0)


def _lease(key: str) -> str:
    return f"v1/leases/{key}"


def _heartbeat(holder: str) -> str:
    return f"v1/holders/{holder}"


def _holder(content: bytes) -> str:
    """Return who holds a lease; nobody where that is not what this module writes."""
    try:
        holder = json.loads(content)["holder"]
    except (ValueError, KeyError, TypeError):
        return "nobody"
    plain = isinstance(holder, str) and holder.replace("-", "").replace(".", "").replace("_", "").isalnum()
    return holder if plain else "nobody"
