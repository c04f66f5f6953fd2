"""Where an artifact comes from: the run and the stage that made it, what that read, and who reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .library import Library
from .outlines import outline_for
from .shapes import ArtifactShape, Outline, Record

__all__ = ["Lineage", "Made", "Origin", "Push", "lineage_of"]

_DEPTH = 12
_ORIGINS = 200
_RUNS = 1000
_MADE = ("ran", "healed", "converged")


class Origin(NamedTuple):
    """One artifact or file that an artifact was made from, `depth` stages before it."""

    depth: int
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
    """What is known of an artifact. `first` is the run that made it, or the oldest that still is here."""

    first: Made
    uses: str
    seen: list[Made]
    origins: list[Origin]
    readers: list[str]
    pushes: list[Push]
    preimage: dict[str, object]


def lineage_of(library: Library, digest: str) -> Lineage | None:
    """Return the lineage of the artifact with a digest; None where no run of this store has it."""
    records = list(library.holding(digest, library.ids()[:_RUNS]))
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
        list(_pushes(library, seen)),
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
    stack = [(1, stage)]
    while stack:
        depth, id_ = stack.pop()
        known = outline.stages.get(id_)
        for name, source in known.inputs.items() if known else ():
            if isinstance(source, str):
                yield Origin(depth, name, "", "", source, "", None)
                continue
            maker, output = source
            made = record.stages.get(maker)
            uses = outline.stages[maker].uses if maker in outline.stages else ""
            artifact = made.artifacts.get(output) if made else None
            yield Origin(depth, name, maker, output, "", uses, artifact)
            if maker not in seen and depth < _DEPTH:
                seen.add(maker)
                stack.append((depth + 1, maker))


def _readers(outline: Outline, stage: str, output: str) -> list[str]:
    return [id_ for id_, node in outline.stages.items() if (stage, output) in node.inputs.values()]


def _pushes(library: Library, seen: list[Made]) -> Iterator[Push]:
    """Yield the pushes below an artifact in the runs that have it: those that did something, each once."""
    told: set[tuple[str, str]] = set()
    for made in seen:
        outline = outline_for(library, made.record)
        if outline is None:
            continue
        below = _below(outline, made.stage)
        for id_ in below:
            node, ended = outline.stages[id_], made.record.stages.get(id_)
            if not node.push or ended is None or (made.record.id, id_) in told:
                continue
            told.add((made.record.id, id_))
            yield Push(made.record.id, id_, node.uses, made.record.target, made.record.live, ended.state)


def _below(outline: Outline, stage: str) -> list[str]:
    """Return the stages that need a stage, at once or through others; outlines are in order."""
    found = {stage}
    for id_, node in outline.stages.items():
        if found.intersection(node.needs):
            found.add(id_)
    return [id_ for id_ in outline.stages if id_ in found]
