"""Remove what is old from a shared cache, and what no record names any more: `cache gc --remote`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..errors import counted
from ..types import Json
from .actions import ActionRecord, record_of
from .inventory import Inventory, each, named_by, record_keys
from .link import HOLDERS, LEASES, Link, object_name, record_name
from .remote import Report

__all__ = ["RemoteGcReport", "collect_remote"]

_DAY_S = 86400.0
_YOUNG_S = _DAY_S
"""An upload puts objects before their record: what is younger may belong to one that is under way."""


class RemoteGcReport(NamedTuple):
    """What was removed, or with `dry_run` what would be."""

    records: int
    objects: int
    bytes: int
    leases: int
    kept_records: int
    kept_objects: int
    dry_run: bool

    def as_dict(self) -> dict[str, Json]:
        """Return the report as JSON."""
        return dict(self._asdict())

    def __str__(self) -> str:
        verb = "would remove" if self.dry_run else "removed"
        return (
            f"{verb} {counted(self.records, 'action record')}, {counted(self.objects, 'object')} "
            f"({counted(self.bytes, 'byte')}) and {counted(self.leases, 'stale lease')}; "
            f"kept {counted(self.kept_records, 'record')} and {counted(self.kept_objects, 'object')}"
        )


def collect_remote(
    link: Link, found: Inventory, keep_days: int, report: Report, *, dry_run: bool = False
) -> RemoteGcReport:
    """Remove records that are older than `keep_days`, objects that no other record names, stale leases.

    `report` is told of each record that was read. Raises RemoteError before anything has been removed if not
    everything can be read.
    """
    remote = link.remote
    old = [key for key, listed in found.records.items() if listed.age_s > keep_days * _DAY_S]
    kept = found.records.keys() - set(old)
    named = _named(link, kept, report)
    stale = [f.name for folder in (LEASES, HOLDERS) for f in remote.list(folder) if f.age_s > _YOUNG_S]
    if not dry_run:
        # Records first: one without its objects has to be rebuilt, an object without one is garbage.
        each(lambda key: remote.delete([record_name(key)]), old)
        new = record_keys(remote) - kept
        named |= _named(link, new, report)
        kept |= new
    doomed = [d for d, f in found.objects.items() if d not in named and f.age_s > _YOUNG_S]
    if not dry_run:
        each(lambda name: remote.delete([name]), [*map(object_name, doomed), *stale])
    freed = sum(found.objects[digest].size for digest in doomed)
    kept_objects = len(found.objects) - len(doomed)
    return RemoteGcReport(len(old), len(doomed), freed, len(stale), len(kept), kept_objects, dry_run)


def _named(link: Link, keys: Iterable[str], report: Report) -> set[str]:
    """Return the digests that records name, whoever signed them: others may trust other keys."""

    def read(key: str) -> ActionRecord | None:
        data = link.remote.read(record_name(key))
        report(1)
        return record_of(key, link.signatures.claimed(data[0])) if data else None

    records = [record for record in each(read, keys) if record is not None]
    return set().union(*named_by(link.remote, records).values())
