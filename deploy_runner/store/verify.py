"""Read every object and record of a store, whatever its memo says, and remove what is damaged."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import counted
from ..types import Json
from .cas import Store
from .files import remove_whatever
from .stat import Fingerprint, is_sound, state_of

__all__ = ["VerifyReport", "verify"]


class VerifyReport(NamedTuple):
    """What a verification of every object found; damaged objects have been removed."""

    objects: int
    bytes: int
    damaged: tuple[str, ...]
    records: int
    refused_records: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Say whether everything was sound."""
        return not (self.damaged or self.refused_records)

    def as_dict(self) -> dict[str, Json]:
        """Return the report as JSON."""
        return {
            "ok": self.ok,
            "objects": self.objects,
            "bytes": self.bytes,
            "damaged": list(self.damaged),
            "records": self.records,
            "refused_records": list(self.refused_records),
        }

    def __str__(self) -> str:
        objects = f"{counted(self.objects, 'object')} ({counted(self.bytes, 'byte')})"
        head = f"{objects} and {counted(self.records, 'action record')}"
        if self.ok:
            return f"{head}: all intact"
        lines = [f"{head}: removed the damaged ones, the next run rebuilds them"]
        lines += [f"  object {digest}" for digest in self.damaged]
        lines += [f"  action record {key}" for key in self.refused_records]
        return "\n".join(lines)


def verify(store: Store) -> VerifyReport:
    """Verify a store; what is damaged is removed, and made again by the next run that needs it."""
    sizes, damaged = [], []
    for digest, path in store.objects():
        try:
            state = state_of(os.lstat(path))
        except FileNotFoundError:
            continue  # gc was quicker.
        sizes.append(state[0])
        if not is_sound(path, digest) and _remove_unless_replaced(path, state):
            damaged.append(digest)
    keys = list(store.records.keys())
    refused = tuple(key for key in keys if store.records.own(key) is None)
    for key in refused:
        store.records.remove(key)
    return VerifyReport(len(sizes), sum(sizes), tuple(damaged), len(keys), refused)


def _remove_unless_replaced(path: str, state: Fingerprint) -> bool:
    """Remove a damaged object, unless a run has put a sound one in its place meanwhile."""
    try:
        if state_of(os.lstat(path)) != state:
            return False
        remove_whatever(path)
    except FileNotFoundError:
        return False
    return True
