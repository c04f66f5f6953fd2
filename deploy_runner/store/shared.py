"""A store with a shared cache behind it: what others have made is a hit here, and what is made here there.

A hit takes the record and no bytes: objects come when something needs them, each hashed while it arrives.
What the shared cache doesn't have, or has wrong, is a miss that is made again; what it can't do, because it
is down, slow or refuses, is left out.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from ..types import Artifact, RemoteSpec
from .actions import ActionRecord, record_body, record_of
from .cas import Claim, Store
from .files import store_error
from .folders import sha256_bytes
from .leases import Leases
from .link import Link, object_name, record_name
from .remote import PART_BYTES, Report, part_bytes
from .sending import Sending
from .transfer import download, read_parts

__all__ = ["SharedStore"]

_REQUESTS_AT_ONCE = 16
_SMALL_BYTES = 1 << 20
_MEDIUM_AT_ONCE = 4

_Made = TypeVar("_Made")


class SharedStore(Store):
    """A store that reads through to a shared cache, and writes back to it where it may."""

    shares = True

    def __init__(
        self, home: Path, spec: RemoteSpec, *, protected: Path | None, environ: Mapping[str, str]
    ) -> None:
        super().__init__(home, protected=protected)
        self.link = Link(spec, environ)
        self._absent: set[str] = set()
        self._given_up: set[str] = set()
        self._shared: dict[str, Any] = {}
        self._lost: set[str] = set()
        self._refused: dict[str, str] = {}
        self._arriving: dict[str, threading.Lock] = {}
        self._guard = threading.RLock()
        self._large = threading.Lock()
        self._medium = threading.Semaphore(_MEDIUM_AT_ONCE)
        self._wake: Callable[[], None] = lambda: None

    # What the threads share -------------------------------------------------------------------

    @property
    def leases(self) -> Leases:
        """The claims of this process."""
        return self._one("_leases", lambda: Leases(self.link, self._is_made, self._tell_claims))

    @property
    def sending(self) -> Sending:
        """What is on its way to the shared cache."""
        return self._one("_sending", lambda: Sending(self.link))

    def _threads(self, purpose: str) -> ThreadPoolExecutor:
        """Return threads for one purpose, so that records need not wait behind thousands of objects."""
        return self._one(f"_{purpose}", lambda: ThreadPoolExecutor(_REQUESTS_AT_ONCE, purpose))

    def _one(self, name: str, make: Callable[[], _Made]) -> _Made:
        """Return what all threads of this process share, made on first use."""
        with self._guard:
            if name not in self._shared:
                self._shared[name] = make()
            found: _Made = self._shared[name]
            return found

    def begin(self, note: Callable[[str], None]) -> None:
        """Begin a run: `note` is told what the user should know of the shared cache.

        What an earlier run of this process found out is forgotten: that the remote failed, and what it lacks.
        """
        self.link.begin(note)
        for known in (self._absent, self._given_up, self._lost):
            known.clear()
        self._refused.clear()

    # Records ---------------------------------------------------------------------------------

    def look_up(self, keys: Iterable[str]) -> None:
        """Ask for the records of keys at once, so that `find` has them."""
        missing = [key for key in keys if key not in self._absent and self.records.get(key) is None]
        if len(missing) > 1 and self.link.reads:
            list(self._threads("records").map(self._bring_record, missing))

    def find(self, key: str) -> ActionRecord | None:
        """Return the record of a key: this store's, else the shared cache's. That is asked once."""
        record = super().find(key)
        if record is None and key not in self._absent:
            record = self._bring_record(key)
        return record

    def problem(self, key: str) -> str:
        """Say why the record of a key was refused, or nothing."""
        return self._refused.get(key, "") or super().problem(key)

    def _bring_record(self, key: str) -> ActionRecord | None:
        """Take over a record from the shared cache; None where it has none that counts.

        The one whose objects were found to be lost doesn't count until another machine has made it again.
        """
        if not self.link.reads:
            return None
        found = self.link.attempt("read", lambda: self.link.remote.read(record_name(key)), None)
        record = self._checked(key, found[0]) if found else None
        if record is None:
            self._absent.add(key)
            return None
        self._absent.discard(key)
        known = self.records.get(key)
        if known is not None and known.remote == "lost" and known._replace(remote="") == record:
            return None
        record = record._replace(remote="there")
        self.records.put(record)
        return record

    def _checked(self, key: str, data: bytes) -> ActionRecord | None:
        body = self.link.signatures.opened(data, "action", key)
        if body is None:
            self._refused[key] = "its action record in the shared cache is not signed by a trusted key"
            return None
        return record_of(key, body)

    def lack_of(self, record: ActionRecord) -> str:
        """Say which output of a record is neither here nor, as far as is known, in the shared cache."""
        lack = super().lack_of(record)
        if not lack or record.key in self._given_up or record.remote == "lost":
            return lack
        if record.remote == "there":
            return ""
        other = self._bring_record(record.key)
        return "" if other is not None and other.outputs == record.outputs else lack

    def give_up(self, key: str) -> None:
        """Take notice that the outputs of a record were not available: it has to be made again.

        That is remembered where the shared cache doesn't have them, and not where it is down.
        """
        self._given_up.add(key)
        record = self.records.get(key)
        if record is not None and any(a.digest in self._lost for a in record.outputs.values()):
            self.records.put(record._replace(remote="lost"))

    # Bringing --------------------------------------------------------------------------------

    @property
    def reaches_all(self) -> bool:
        """Say whether the shared cache has been read without a failure, so far."""
        return self.link.works("read")

    def fetch(self, artifact: Artifact, report: Report = lambda count: None) -> bool:
        """Bring what is missing of an artifact; say whether all of it is here. Raises StoreError."""
        if self.state(artifact) == "present":
            return True
        return self.link.reads and self._bring_all(artifact, report)

    def _bring_all(self, artifact: Artifact, report: Report) -> bool:
        if artifact.kind == "file":
            here = self._bring(artifact.digest, artifact.size, report)
        else:
            here = self._bring_manifest(artifact.digest) and all(
                self._threads("downloads").map(
                    lambda m: self._bring(m.digest, m.size, report), self.members(artifact)
                )
            )
        if not here and self.link.works("read"):
            self._lost.add(artifact.digest)
        return here

    def _bring(self, digest: str, size: int, report: Report) -> bool:
        """Bring one object, unless another thread has just done so."""
        with self._guard:
            arriving = self._arriving.setdefault(digest, threading.Lock())

        def bring() -> bool:
            name = object_name(digest)
            try:
                return self.place(digest, lambda fd: download(self.link.remote, name, size, fd, report))
            except FileNotFoundError:
                return False
            except OSError as error:
                raise store_error(error, self.object_path(digest)) from error

        with arriving:
            if self.state(Artifact(digest, "file", size)) == "present":
                return True
            return self.link.attempt("read", bring, otherwise=False)

    def _bring_manifest(self, digest: str) -> bool:
        if self._object_state(digest, 0, False) == "present":
            return True
        found = self.link.attempt("read", lambda: self.link.remote.read(object_name(digest)), None)
        if found is None or sha256_bytes(found[0]) != digest:
            return False
        self._put_bytes(found[0], digest)
        return True

    # Sending ---------------------------------------------------------------------------------

    def claim(self, key: str) -> Claim:
        """Say whether this run makes an action. Raises RequiredError."""
        return self.leases.ask(key)

    def settle(self, key: str, record: ActionRecord | None, *, again: bool = False) -> None:
        """Send an action's record in the background, then give the claim up.

        With `again` its objects are sent even if the shared cache says that it has them.
        """
        self.sending.add(lambda report: self._settle(key, record, again, report))

    def _settle(self, key: str, record: ActionRecord | None, again: bool, report: Report) -> bool:
        try:
            return record is not None and self.push(record, again=again, report=report)
        finally:
            self.leases.release(key)

    def _is_made(self, key: str, waited: bool) -> bool:
        """Say whether a record is there; one that was given up counts if another machine was waited for."""
        with self._guard:
            if waited:
                self._given_up.discard(key)
            elif key in self._given_up:
                return False
        return self._bring_record(key) is not None

    def tell_claims(self, wake: Callable[[], None]) -> None:
        """Have `wake` called from a thread when a claim's answer has changed, until another one is set."""
        with self._guard:
            self._wake = wake

    def _tell_claims(self) -> None:
        with self._guard:  # Not after `tell_claims` has returned: what `wake` needs may be closed then.
            self._wake()

    def push(self, record: ActionRecord, *, again: bool = False, report: Report = lambda count: None) -> bool:
        """Send a record, after what it names; say whether it is there.

        Raises StoreError for an object that isn't here.
        """
        if not self.link.pushes:
            return False

        def send() -> bool:
            away = record.outputs.values() if record.remote != "there" else ()
            for artifact in away:
                self.send(artifact, again=again, report=report)
            self.send_record(record)
            return True

        return self.link.attempt("written", send, otherwise=False)

    def send_record(self, record: ActionRecord) -> None:
        """Send a record, whose objects are there. Raises RemoteError."""
        body = self.link.signatures.signed(record_body(record._replace(remote="")), "action", record.key)
        self.link.remote.write(record_name(record.key), body)

    def send(self, artifact: Artifact, *, again: bool = False, report: Report = lambda count: None) -> None:
        """Send what the shared cache lacks of an artifact.

        Raises RemoteError where that fails, StoreError for an object that isn't here.
        """
        if artifact.kind == "folder":  # One that was made elsewhere may have its files there alone.
            self._bring_manifest(artifact.digest)
        objects = list(self.objects_of(artifact))
        threads = self._threads("uploads")
        list(threads.map(lambda o: self.send_object(*o, again=again, report=report), objects))

    def objects_of(self, artifact: Artifact) -> Iterator[tuple[str, int]]:
        """Yield the digest and the size of each object of an artifact: of a folder, its manifest last."""
        if artifact.kind == "folder":
            members = self.members(artifact)
            yield from dict.fromkeys((m.digest, m.size) for m in members)
            yield artifact.digest, os.path.getsize(self.object_path(artifact.digest))
        else:
            yield artifact.digest, artifact.size

    def send_object(self, digest: str, size: int, *, again: bool, report: Report) -> None:
        """Send an object, unless the shared cache has it, or `again`. Raises as `send` does."""
        name, path = object_name(digest), os.fspath(self.object_path(digest))
        if not again and self.link.remote.size(name) == size:
            report(0)
            return
        parts = read_parts(path, digest, part_bytes(size), report)
        with self._memory_for(size):
            self.link.remote.send(name, parts, size)

    def _memory_for(self, size: int) -> AbstractContextManager[object]:
        """Return what holds a thread back until its object's parts have room in memory."""
        return self._large if size > PART_BYTES else self._medium if size > _SMALL_BYTES else nullcontext()

    def finish(self) -> None:
        """Wait for what is on its way there. Raises RequiredError where the cache is required and fails."""
        if "_sending" in self._shared:
            self.sending.finish()

    # Ending ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Give up what is claimed, and close the store."""
        for name in ("_sending", "_leases"):
            if name in self._shared:
                self._shared[name].close()
        for name in ("_records", "_downloads", "_uploads"):
            if name in self._shared:
                self._shared[name].shutdown(cancel_futures=True)
        self._shared.clear()
        super().close()
