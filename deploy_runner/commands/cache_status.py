"""`cache status`: what the store has, if the shared cache can be used, and where each stage's outputs are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..engine.runs import pinned_runs, recorded_runs
from ..errors import DeployRunnerError, counted
from ..store.cas import Store
from ..types import Json

if TYPE_CHECKING:
    from ..api import Pipeline
    from ..store.link import Link
    from ..store.shared import SharedStore

__all__ = ["CacheStatus", "cannot_read", "cannot_write", "status"]

Place = Literal["here", "here and shared", "shared", "nowhere"]


class _Local(NamedTuple):
    home: str
    objects: int
    bytes: int
    records: int
    runs: int
    pinned: int


class _Remote(NamedTuple):
    """`reads` and `writes` are empty where that works, else they say why it doesn't."""

    url: str
    reads: str
    writes: str
    public_key: str
    trusted_keys: tuple[str, ...]


class CacheStatus(NamedTuple):
    """The local store, the shared cache if there is one, and where the outputs of each stage are."""

    local: _Local
    remote: _Remote | None
    stages: Mapping[str, Place]
    exit_code: int

    def as_dict(self) -> dict[str, Json]:
        """Return the status as JSON."""
        remote: dict[str, Json] | None = None
        if self.remote is not None:
            remote = {**self.remote._asdict(), "trusted_keys": list(self.remote.trusted_keys)}
        return {"local": self.local._asdict(), "remote": remote, "stages": dict(self.stages)}

    def __str__(self) -> str:
        from ..report.lines import size

        local, remote = self.local, self.remote
        lines = [
            f"store: {local.home}",
            f"  {counted(local.objects, 'object')} ({size(local.bytes)}), "
            f"{counted(local.records, 'action record')}, "
            f"{counted(local.runs, 'run')} ({local.pinned} pinned)",
        ]
        if remote is None:
            lines.append("shared cache: none is configured")
        else:
            lines += [
                f"shared cache: {remote.url}",
                f"  read: {f'no: {remote.reads}' if remote.reads else 'yes'}",
                f"  write: {f'no: {remote.writes}' if remote.writes else 'yes'}",
                f"  public key of this machine: {remote.public_key or 'none'}",
                f"  trusted keys: {', '.join(remote.trusted_keys) or 'none'}",
            ]
        width = max((len(id_) for id_ in self.stages), default=0)
        lines += ["stages:", *(f"  {id_:<{width}}  {place}" for id_, place in self.stages.items())]
        return "\n".join(lines)


def status(pipeline: Pipeline) -> CacheStatus:
    """Look at the store and at the shared cache. What fails there is part of the status."""
    from ..store.shared import SharedStore

    pipeline.graph = pipeline.graph._replace(cache=pipeline.graph.cache._replace(required=False))
    pipeline.note = lambda sentence: None
    store = pipeline.store
    shared = store if isinstance(store, SharedStore) else None
    with store.hold():
        remote, exit_code = _remote(shared) if shared is not None else (None, 0)
        stages = _stages(pipeline, shared if remote is not None and not remote.reads else None)
        return CacheStatus(_local(store), remote, stages, exit_code)


def _local(store: Store) -> _Local:
    sizes = [_size(path) for _, path in store.objects()]
    records = sum(1 for _ in store.records.keys())  # noqa: SIM118
    runs = sum(1 for _ in recorded_runs(store.home))
    return _Local(str(store.home), len(sizes), sum(sizes), records, runs, len(pinned_runs(store.home)))


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:  # A collection was quicker.
        return 0


def _remote(store: SharedStore) -> tuple[_Remote, int]:
    """Return what the shared cache is good for, and the exit code: not 0 where it can't be read."""
    link, exit_code = store.link, 0
    own = link.signatures.public_key
    trusted = tuple(dict.fromkeys((*link.spec.public_keys, *([own] if own else []))))
    reads = cannot_read(link)
    if reads is not None:
        exit_code = reads.exit_code
    writes = str(reads) if reads is not None else _why_not_written(link)
    return _Remote(link.remote.url, str(reads or ""), writes, own, trusted), exit_code


def cannot_read(link: Link) -> DeployRunnerError | None:
    """Try to read a record that does not exist. (A HEAD wouldn't say that the bucket doesn't.)"""
    from ..store.link import record_name

    if not link.reads:
        return link.failure("read")
    link.attempt("read", lambda: link.remote.read(record_name("0" * 64)), None)
    return link.failure("read")


def _why_not_written(link: Link) -> str:
    if link.obstacle is None and not link.spec.push:
        return "cache.push is not set (`deploy-runner cache push` sends what is made here)"
    return str(cannot_write(link) or "")


def cannot_write(link: Link) -> DeployRunnerError | None:
    """Try to write, where a run would: an object that is removed again, and collected if it isn't."""
    from ..store.link import heartbeat_name

    if link.obstacle is not None:
        return link.obstacle
    name = heartbeat_name(f"status-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        link.remote.write(name, b"{}")
        link.remote.delete([name])
    except DeployRunnerError as error:
        return error
    return None


def _stages(pipeline: Pipeline, shared: SharedStore | None) -> dict[str, Place]:
    """Return where the outputs of each stage are, as the plan finds them now."""
    places: dict[str, Place] = {}
    keys: dict[str, str] = {}
    for node, decision, _ in pipeline.planner().decisions():
        places[node.id] = "nowhere"
        if decision is not None and decision.state == "hit" and decision.record is not None:
            outputs = decision.record.outputs.values()
            here = all(pipeline.store.state(artifact) == "present" for artifact in outputs)
            places[node.id] = "here" if here else "shared"
            keys[node.id] = decision.key
    if shared is not None:
        _ask_for_others(shared, keys, places)
    return places


def _ask_for_others(shared: SharedStore, keys: Mapping[str, str], places: dict[str, Place]) -> None:
    """Find which of the stages that are here are in the shared cache as well."""
    from ..store.inventory import each
    from ..store.link import record_name

    here = [id_ for id_, key in keys.items() if places[id_] == "here"]
    sizes = each(lambda id_: shared.link.remote.size(record_name(keys[id_])), here)
    for id_, size in zip(here, sizes, strict=True):
        if size is not None:
            places[id_] = "here and shared"
