"""Send what a shared cache lacks of what was made here: `cache push`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from ..errors import StoreError, counted
from ..types import Json
from .actions import ActionRecord
from .inventory import each, record_keys
from .link import object_name
from .remote import RemoteError, Report
from .shared import SharedStore

__all__ = ["PushReport", "Unsent", "push", "unsent", "without_known"]

_AT_ONCE = 4
"""Each may hold the parts of a large object in memory."""


class Unsent(NamedTuple):
    """What to send: records, each with the digests it names, and objects with their sizes.

    `lost` are the keys of records whose objects are not here any more, `known` counts those that it has.
    """

    records: list[tuple[ActionRecord, list[str]]]
    objects: dict[str, int]
    lost: tuple[str, ...]
    known: int

    @property
    def bytes(self) -> int:
        """How much there is to send."""
        return sum(self.objects.values())


class PushReport(NamedTuple):
    """What was sent, what was there already, and what is left because of `failure`."""

    records: int
    objects: int
    bytes: int
    known: int
    lost: tuple[str, ...]
    left: int = 0
    failure: RemoteError | None = None

    @property
    def exit_code(self) -> int:
        """0 if nothing is left to send."""
        return self.failure.exit_code if self.failure else 0

    def as_dict(self) -> dict[str, Json]:
        """Return the report as JSON."""
        error = str(self.failure) if self.failure else ""
        return {**self._asdict(), "lost": list(self.lost), "failure": error}

    def __str__(self) -> str:
        lines = [
            f"sent {counted(self.records, 'action record')} and {counted(self.objects, 'object')} "
            f"({counted(self.bytes, 'byte')}); {self.known} existed there"
        ]
        if self.lost:
            lines.append(
                f"objects of {counted(len(self.lost), 'record')} are lost: run again to rebuild them"
            )
        if self.failure:
            lines.append(f"left {counted(self.left, 'record')}: {self.failure}")
        return "\n".join(lines)


def unsent(store: SharedStore) -> Unsent:
    """Find the records that the shared cache lacks, by listing those that it has. Raises RemoteError."""
    there = record_keys(store.link.remote)
    own = [record for key in store.records.keys() if (record := store.records.own(key))]  # noqa: SIM118
    made = [record for record in own if record.remote == ""]
    records: list[tuple[ActionRecord, list[str]]] = []
    sizes: dict[str, int] = {}
    lost = []
    for record in (record for record in made if record.key not in there):
        if any(store.state(artifact) != "present" for artifact in record.outputs.values()):
            lost.append(record.key)
            continue
        objects = dict(found for a in record.outputs.values() for found in store.objects_of(a))
        records.append((record, list(objects)))
        sizes |= objects
    return Unsent(records, sizes, tuple(lost), sum(record.key in there for record in made))


def without_known(store: SharedStore, found: Unsent, report: Report) -> Unsent:
    """Leave out the objects that the shared cache has. `report` is told of each. Raises RemoteError."""

    def lacks(row: tuple[str, int]) -> bool:
        there = store.link.remote.size(object_name(row[0])) == row[1]
        report(1)
        return not there

    lacking = each(lacks, found.objects.items())
    objects = [row for row, lacks in zip(found.objects.items(), lacking, strict=True) if lacks]
    return found._replace(objects=dict(objects))


def push(store: SharedStore, found: Unsent, report: Report) -> PushReport:
    """Send it: the objects of each record, then the record; after a failure no more."""
    sending = _Push(store, found.objects, report)
    with ThreadPoolExecutor(_AT_ONCE, "push") as pool:
        # A record waits in its thread for its objects: these were begun before, so they come to an end.
        sent: dict[str, Future[bool]] = {}
        records = []
        for record, digests in found.records:
            for digest in digests:
                if digest in found.objects and digest not in sent:
                    sent[digest] = pool.submit(sending.send, digest)
            needed = [sent[digest] for digest in digests if digest in sent]
            records.append(pool.submit(sending.send_record, record, needed))
        try:
            states = [future.result() for future in records]
        except BaseException:
            sending.stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    lost = [r.key for (r, _), state in zip(found.records, states, strict=True) if state == "lost"]
    arrived = [digest for digest, future in sent.items() if future.result()]
    return PushReport(
        states.count("sent"), len(arrived), sum(found.objects[digest] for digest in arrived), found.known,
        (*found.lost, *lost), states.count("left"), sending.failure,
    )  # fmt: skip


class _Push:
    """What the threads of one push do."""

    def __init__(self, store: SharedStore, sizes: dict[str, int], report: Report) -> None:
        self._store = store
        self._sizes = sizes
        self._report = report
        self._lock = threading.Lock()
        self.stopped = False
        self.failure: RemoteError | None = None

    def send(self, digest: str) -> bool:
        """Send an object; say whether it has arrived."""
        size = self._sizes[digest]
        return self._done(lambda: self._store.send_object(digest, size, again=True, report=self._count))

    def send_record(self, record: ActionRecord, objects: list[Future[bool]]) -> str:
        """Send a record after its objects; return "sent", "lost" where one isn't sound, or "left"."""
        arrived = all(future.result() for future in objects)
        if arrived and self._done(lambda: self._store.send_record(record)):
            return "sent"
        return "left" if self.stopped else "lost"

    def _count(self, count: int) -> None:
        if self.stopped:
            raise RemoteError("the command has ended")
        self._report(count)

    def _done(self, do: Callable[[], None]) -> bool:
        if self.stopped:
            return False
        try:
            do()
        except RemoteError as error:
            with self._lock:
                self.failure = self.failure or error
                self.stopped = True
            return False
        except StoreError:
            return False  # An object that is damaged.
        return True
