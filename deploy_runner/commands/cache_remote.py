"""The shared cache's side of `cache`: its status, push and pull, and its verification and collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import StoreError, UsageError, counted
from ..types import Artifact, Json

if TYPE_CHECKING:
    from ..api import Pipeline
    from ..store.gc_remote import RemoteGcReport
    from ..store.shared import SharedStore
    from ..store.upload import PushReport
    from ..store.verify_remote import RemoteVerifyReport
    from .options import Selection

__all__ = ["PullReport", "collect", "pull", "push", "shared_store", "verify"]

_OBJECTS_AT_ONCE = 8


def shared_store(selection: Selection) -> tuple[Pipeline, SharedStore]:
    """Return a pipeline and its store, which is quiet about the shared cache: what fails is raised.

    Raises UsageError where no shared cache is configured.
    """
    from ..store.shared import SharedStore

    pipeline = selection.load()
    if pipeline.remote is None:
        fix = "set cache.remote in the pipeline or an overlay, or DEPLOY_RUNNER_REMOTE"
        raise UsageError("no shared cache is configured", fix=fix)
    cache = pipeline.graph.cache._replace(required=False)
    pipeline.graph = pipeline.graph._replace(cache=cache)
    pipeline.note = lambda sentence: None
    store = pipeline.store
    assert isinstance(store, SharedStore)
    return pipeline, store


def push(store: SharedStore) -> PushReport:
    """Send what the shared cache lacks of what was made here, whether the pipeline says `push` or not.

    Raises UsageError where this machine can't or may not, RemoteError where the remote can't be read.
    """
    from ..report.transfers import Transfer
    from ..store import upload

    _require_key(store, "pushed to")
    with store.hold():
        unsent = upload.unsent(store)
        count = len(unsent.objects)
        with Transfer("looking for objects in the shared cache", count, shown=str) as report:
            found = upload.without_known(store, unsent, report)
        with Transfer("pushing to the shared cache", found.bytes) as report:
            return upload.push(store, found, report)


class PullReport(NamedTuple):
    """How many `stages` are complete here, how much came for that, what is `lost`, what has to run."""

    stages: int
    artifacts: int
    bytes: int
    lost: tuple[str, ...]
    to_run: tuple[str, ...]

    def as_dict(self) -> dict[str, Json]:
        """Return the report as JSON."""
        return {**self._asdict(), "lost": list(self.lost), "to_run": list(self.to_run)}

    def __str__(self) -> str:
        lines = [
            f"downloaded {counted(self.artifacts, 'output')} ({counted(self.bytes, 'byte')}); "
            f"complete in the store: {counted(self.stages, 'stage')}"
        ]
        if self.to_run:
            lines.append(f"to run: {counted(len(self.to_run), 'stage')}: {', '.join(self.to_run)}")
        lines += [
            f"{name} is not in the shared cache any more: the next run rebuilds it" for name in self.lost
        ]
        return "\n".join(lines)


class _Away(NamedTuple):
    stage: str
    output: str
    key: str
    artifact: Artifact


def pull(pipeline: Pipeline, store: SharedStore, names: Sequence[str]) -> PullReport:
    """Bring the records and all outputs of the stages that are hits, so that a run needs no remote.

    Raises RemoteError where the remote can't be read.
    """
    from ..report.transfers import Transfer
    from ..store.inventory import each

    with store.hold():
        hits: dict[str, list[_Away]] = {}
        to_run = []
        for node, decision, _ in pipeline.planner().decisions(list(names) or None):
            if decision is None or decision.state != "hit" or decision.record is None:
                to_run.append(node.id)
                continue
            outputs = decision.record.outputs.items()
            hits[node.id] = [_Away(node.id, name, decision.key, artifact) for name, artifact in outputs]
        _require_read(store)
        named = [one for outputs in hits.values() for one in outputs]
        away = {one.artifact: one for one in named if store.state(one.artifact) != "present"}
        total = sum(artifact.size for artifact in away)
        with Transfer("downloading from the shared cache", total) as report:

            def bring(artifact: Artifact) -> bool:
                here = store.fetch(artifact, report)
                if not here:
                    _require_read(store)
                return here

            came = dict(zip(away, each(bring, away, _OBJECTS_AT_ONCE), strict=True))
        lost = [one for one in named if not came.get(one.artifact, True)]
        for one in lost:
            store.give_up(one.key)
        complete = hits.keys() - {one.stage for one in lost}
        arrived = [artifact for artifact, here in came.items() if here]
        return PullReport(
            len(complete), len(arrived), sum(artifact.size for artifact in arrived),
            tuple(f"{one.stage}.{one.output}" for one in lost), tuple(to_run),
        )  # fmt: skip


def _require_read(store: SharedStore) -> None:
    """Raise what has failed in reading the shared cache, if anything has."""
    if not store.link.reads or not store.link.works("read"):
        failure = store.link.failure("read")
        raise failure or StoreError(f"{store.link.remote.url} can't be read")


def _require_key(store: SharedStore, what: str) -> None:
    if obstacle := store.link.obstacle:
        message = f"nothing can be {what} {store.link.remote.url}: {obstacle.message}"
        raise UsageError(message, fix=obstacle.fix)


def verify(store: SharedStore) -> RemoteVerifyReport:
    """Check everything in the shared cache; what is wrong is removed, if this machine may write.

    Raises RemoteError where the remote can't be read, or no key is trusted.
    """
    from ..report.transfers import Transfer
    from ..store.inventory import take_inventory
    from ..store.verify_remote import verify_remote

    _require_read(store)
    obstacle = store.link.obstacle
    kept_because = f"nothing that is wrong was removed: {obstacle}" if obstacle else ""
    found = take_inventory(store.link.remote)
    with Transfer("verifying the shared cache", found.bytes) as report:
        return verify_remote(store.link, found, report, kept_because=kept_because)


def collect(store: SharedStore, keep_days: int, *, dry_run: bool) -> RemoteGcReport:
    """Remove from the shared cache what is old, and what no record names.

    Raises UsageError where this machine can't or may not write, RemoteError where the remote can't be used.
    """
    from ..report.transfers import Transfer
    from ..store.gc_remote import collect_remote
    from ..store.inventory import take_inventory

    if not dry_run:
        _require_key(store, "removed from")
    found = take_inventory(store.link.remote)
    with Transfer("reading records of the shared cache", len(found.records), shown=str) as report:
        return collect_remote(store.link, found, keep_days, report, dry_run=dry_run)
