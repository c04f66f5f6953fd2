"""Remove what nothing refers to: mark from the runs that are kept, sweep while no run is live.

A run holds the store's gc lock shared until its record is written; marking and sweeping take it
exclusively, so an object that a live run has found, or has just made, is never taken from under it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import StoreError, counted
from ..types import Artifact, Json
from .actions import listdir
from .cas import Store
from .files import remove_whatever
from .locks import Lock
from .removal import remove_tree

__all__ = ["GcReport", "collect"]


class GcReport(NamedTuple):
    """What was removed, or with `dry_run` what would be."""

    objects: int
    bytes: int
    records: int
    runs: int
    kept_objects: int
    dry_run: bool

    def as_dict(self) -> dict[str, Json]:
        """Return the report as JSON."""
        return dict(self._asdict())

    def __str__(self) -> str:
        verb = "would remove" if self.dry_run else "removed"
        return (
            f"{verb} {counted(self.objects, 'object')} ({counted(self.bytes, 'byte')}), "
            f"{counted(self.records, 'action record')} and {counted(self.runs, 'run')}; "
            f"kept {counted(self.kept_objects, 'object')}"
        )


def collect(
    store: Store, kept: Callable[[], Mapping[str, Iterable[str]]], *, dry_run: bool = False
) -> GcReport:
    """Remove every object, action record and run that the kept runs don't refer to.

    `kept` returns the ids of the runs to keep, each with the action keys in it; it is called under
    the lock, for a run may have ended a moment before. Raises StoreError while a run is going on:
    waiting for it could take hours.
    """
    lock = Lock(f"{os.fspath(store.home)}/gc.lock")
    if not lock.try_acquire():
        raise StoreError("a run is using this store", fix="run gc when it has finished")
    try:
        store.sweep_tmp()
        return _sweep(store, kept(), dry_run=dry_run)
    finally:
        lock.release()


def _sweep(store: Store, kept: Mapping[str, Iterable[str]], *, dry_run: bool) -> GcReport:
    keys = {key for run in kept.values() for key in run}
    digests: set[str] = set()
    for key in keys:
        record = store.records.get(key)
        for artifact in record.outputs.values() if record else ():
            digests |= set(_closure(store, artifact))
    doomed = [(d, p) for d, p in store.objects() if d not in digests]
    freed = sum(os.lstat(path).st_size for _, path in doomed)
    old_keys = [key for key in store.records.keys() if key not in keys]  # noqa: SIM118
    old_runs = [name for name in listdir(f"{os.fspath(store.home)}/runs") if name not in kept]
    if not dry_run:
        # Records first: a record without its objects is healed, an object without one is garbage.
        for key in old_keys:
            store.records.remove(key)
        for _, path in doomed:
            remove_whatever(path)
        for name in old_runs:
            remove_tree(Path(store.home) / "runs" / name)
        for name in listdir(f"{os.fspath(store.home)}/locks"):
            _remove_lock(f"{os.fspath(store.home)}/locks/{name}")
    return GcReport(len(doomed), freed, len(old_keys), len(old_runs), len(digests), dry_run)


def _closure(store: Store, artifact: Artifact) -> Iterator[str]:
    yield artifact.digest
    if artifact.kind == "folder" and store.state(artifact) == "present":
        yield from (member.digest for member in store.members(artifact))


def _remove_lock(path: str) -> None:
    lock = Lock(path)
    if lock.try_acquire():
        lock.release(remove=True)
