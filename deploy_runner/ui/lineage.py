"""Where an artifact comes from: the run and the stage that made it, what that read, and who reads it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from .library import Library
from .outlines import outline_for
from .shapes import ArtifactShape, Outline, Record

__all__ = ["Lineage", "Made", "Origin", "Push", "lineage_of"]

_DEPTH = 12
_ORIGINS = 200
_RUNS = 1000
_NEWEST, _OLDEST = 40, 10
"""So many runs that have an artifact are read, at each end: the oldest built it."""
_PUSHING = 20
_MADE = ("ran", "healed", "converged")


class Origin(NamedTuple):
    """One artifact or file that an artifact was made from: an input of `reader`, `depth` stages before."""

    depth: int
    reader: str
    input: str
    stage: str
    output: str
    path: str
    uses: str
    artifact: ArtifactShape | None


class Push(NamedTuple):
    """A push of a run that read an artifact, or what was made from it."""

    run: str
    stage: str
    uses: str
    target: str
    live: bool
    state: str


class Made(NamedTuple):
    """The output of a stage in a run."""

    record: Record
    stage: str
    output: str
    artifact: ArtifactShape

    @property
    def state(self) -> str:
        """How the stage ended in that run."""
        return self.record.stages[self.stage].state


class Lineage(NamedTuple):
    """What is known of an artifact.

    `first` is where it was made, or the oldest that the store still has; `more` runs have it that `seen` and
    `pushes` leave out.
    """

    first: Made
    uses: str
    seen: list[Made]
    origins: list[Origin]
    readers: list[str]
    pushes: list[Push]
    more: int
    preimage: dict[str, object]


def lineage_of(library: Library, digest: str) -> Lineage | None:
    """Return the lineage of the artifact with a digest; None where no run of this store has it."""
    ids = library.holding(digest, library.ids()[:_RUNS])
    chosen = dict.fromkeys((*ids[:_NEWEST], *ids[-_OLDEST:]))
    records = [record for id_ in chosen if (record := library.record(id_)) is not None]
    seen = [made for record in records for made in _outputs(record, digest)]
    if not seen:
        return None
    first = next((made for made in reversed(seen) if made.state in _MADE), seen[-1])
    outline = outline_for(library, first.record)
    action = library.action(first.record.stages[first.stage].key)
    uses = outline.stages[first.stage].uses if outline and first.stage in outline.stages else ""
    origins = list(_origins(first.record, outline, first.stage)) if outline else []
    return Lineage(
        first,
        uses or (action.uses if action else ""),
        seen,
        origins[:_ORIGINS],
        _readers(outline, first.stage, first.output) if outline else [],
        [push for record in records[:_PUSHING] for push in _pushes(library, record, digest)],
        max(0, len(ids) - len(chosen)),
        dict(action.preimage) if action else {},
    )


def _outputs(record: Record, digest: str) -> Iterator[Made]:
    for id_, stage in record.stages.items():
        for name, artifact in stage.artifacts.items():
            if artifact.digest == digest:
                yield Made(record, id_, name, artifact)


def _origins(record: Record, outline: Outline, stage: str) -> Iterator[Origin]:
    """Yield what a stage read, and before each of these what its stage read, every stage once."""
    seen = {stage}
    queue = deque([(1, stage)])
    while queue:
        depth, id_ = queue.popleft()
        known = outline.stages.get(id_)
        for name, source in known.inputs.items() if known else ():
            if isinstance(source, str):
                yield Origin(depth, id_, name, "", "", source, "", None)
                continue
            maker, output = source
            made = record.stages.get(maker)
            uses = outline.stages[maker].uses if maker in outline.stages else ""
            artifact = made.artifacts.get(output) if made else None
            yield Origin(depth, id_, name, maker, output, "", uses, artifact)
            if maker not in seen and depth < _DEPTH:
                seen.add(maker)
                queue.append((depth + 1, maker))


def _readers(outline: Outline, stage: str, output: str) -> list[str]:
    return [id_ for id_, node in outline.stages.items() if (stage, output) in node.inputs.values()]


def _pushes(library: Library, record: Record, digest: str) -> Iterator[Push]:
    """Yield the pushes of a run that need an artifact, at once or through other stages."""
    outline = outline_for(library, record)
    makers = {made.stage for made in _outputs(record, digest)}
    if outline is None:
        return
    for id_ in _below(outline, makers):
        node, ended = outline.stages[id_], record.stages.get(id_)
        if node.push and ended is not None:
            yield Push(record.id, id_, node.uses, record.target, record.live, ended.state)


def _below(outline: Outline, stages: set[str]) -> list[str]:
    """Return the stages that need some of these; outlines are in order."""
    found = set(stages)
    for id_, node in outline.stages.items():
        if found.intersection(node.needs):
            found.add(id_)
    return [id_ for id_ in outline.stages if id_ in found]
