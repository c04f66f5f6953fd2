"""Check every record and object of a shared cache, and remove what is wrong: `cache verify --remote`."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import counted
from ..types import Json
from .actions import ActionRecord, record_of
from .inventory import Inventory, each, named_by
from .link import Link, object_name, record_name
from .remote import RemoteError, Report
from .transfer import digest_of

__all__ = ["RemoteVerifyReport", "verify_remote"]

_OBJECTS_AT_ONCE = 4


class RemoteVerifyReport(NamedTuple):
    """What was wrong: objects with other bytes, records that nobody trusted signed, or that lack objects.

    `kept_because` says why it has not been removed.
    """

    objects: int
    bytes: int
    damaged: tuple[str, ...]
    records: int
    untrusted_records: tuple[str, ...]
    incomplete_records: tuple[str, ...]
    kept_because: str = ""

    @property
    def ok(self) -> bool:
        """Say whether everything was sound."""
        return not (self.damaged or self.untrusted_records or self.incomplete_records)

    def as_dict(self) -> dict[str, Json]:
        """Return the report as JSON."""
        rows = {name: list(value) for name, value in self._asdict().items() if isinstance(value, tuple)}
        return {"ok": self.ok, **self._asdict(), **rows}

    def __str__(self) -> str:
        objects = f"{counted(self.objects, 'object')} ({counted(self.bytes, 'byte')})"
        head = f"{objects} and {counted(self.records, 'action record')}"
        if self.ok:
            return f"{head}: all intact"
        done = "removed what is wrong, the next run rebuilds it"
        lines = [f"{head}: {self.kept_because or done}"]
        lines += [f"  object {digest} is damaged" for digest in self.damaged]
        lines += [f"  action record {key} is not signed by a trusted key" for key in self.untrusted_records]
        lines += [f"  action record {key} lacks objects" for key in self.incomplete_records]
        return "\n".join(lines)


def verify_remote(
    link: Link, found: Inventory, report: Report, *, kept_because: str = ""
) -> RemoteVerifyReport:
    """Verify what an inventory has found, and remove what is wrong, unless there is a reason to keep it.

    Raises RemoteError where the remote can't be read.
    """
    sizes = {digest: listed.size for digest, listed in found.objects.items()}
    sound = each(lambda row: _is_sound(link, *row, report), sizes.items(), _OBJECTS_AT_ONCE)
    damaged = {digest for digest, is_sound in zip(sizes, sound, strict=True) if not is_sound}
    records = dict(each(lambda key: (key, _record(link, key)), found.records))
    untrusted = tuple(key for key, record in records.items() if record == "untrusted")
    trusted = [record for record in records.values() if isinstance(record, ActionRecord)]
    whole = sizes.keys() - damaged
    named = named_by(link.remote, trusted)
    incomplete = tuple(key for key, digests in named.items() if not digests <= whole)
    checked = RemoteVerifyReport(
        len(sizes),
        sum(sizes.values()),
        tuple(sorted(damaged)),
        len(records),
        untrusted,
        incomplete,
        kept_because,
    )
    return checked if checked.ok or kept_because else _removed(link, sizes, checked)


def _removed(link: Link, sizes: dict[str, int], checked: RemoteVerifyReport) -> RemoteVerifyReport:
    """Remove what is wrong: records first, and no object that was replaced by a sound one meanwhile."""
    doomed = [record_name(key) for key in (*checked.untrusted_records, *checked.incomplete_records)]
    try:
        each(lambda name: link.remote.delete([name]), doomed)
        still = [d for d in checked.damaged if not _is_sound(link, d, sizes[d], lambda count: None)]
        each(lambda digest: link.remote.delete([object_name(digest)]), still)
    except RemoteError as error:
        return checked._replace(kept_because=f"not everything that is wrong was removed: {error}")
    return checked


def _is_sound(link: Link, digest: str, size: int, report: Report) -> bool:
    """Say whether an object has the bytes that it is named by, or has been removed since it was listed."""
    try:
        return digest_of(link.remote, object_name(digest), size, report) == digest
    except FileNotFoundError:
        return link.remote.size(object_name(digest)) is None


def _record(link: Link, key: str) -> ActionRecord | str:
    """Return a record, or what it is: untrusted, removed since it was listed, of another version."""
    data = link.remote.read(record_name(key))
    if data is None:
        return "gone"
    body = link.signatures.opened(data[0], "action", key)
    if body is None:
        return "untrusted"
    return record_of(key, body) or "foreign"
