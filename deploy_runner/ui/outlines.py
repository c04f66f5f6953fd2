"""Which stage of a run needs which, for runs that have written an outline and for those that haven't."""

from __future__ import annotations

from ..types import PathSource, RefSource, Source
from .library import Library
from .shapes import Outline, OutlineStage, Record

__all__ = ["outline_for", "sources_of"]

_LOOKED_AT = 50


def outline_for(library: Library, record: Record) -> Outline | None:
    """Return the outline of a finished run: its own, that of a run near it, or one from its action records.

    Of another run of the pipeline it is taken where that has all the stages: a run in which everything is a
    hit does what another did.
    """
    own = library.outline_of(record.id)
    if own is not None:
        return own
    near = [id_ for id_ in library.ids() if id_ <= record.id][:_LOOKED_AT]
    for id_ in near:
        found = library.outline_of(id_)
        if found is not None and found.files == record.files and found.stages.keys() >= record.stages.keys():
            stages = {name: found.stages[name] for name in found.stages if name in record.stages}
            return found.model_copy(update={"stages": stages})
    return _from_actions(library, record)


def _from_actions(library: Library, record: Record) -> Outline:
    """Return an outline as record and digests say it: a stage has read what an earlier one has made."""
    made: dict[str, tuple[str, str]] = {}
    stages: dict[str, OutlineStage] = {}
    for id_, stage in record.stages.items():
        action = library.action(stage.key)
        read = action.preimage.get("inputs") if action else None
        inputs: dict[str, tuple[str, str] | str] = {}
        for name, row in read.items() if isinstance(read, dict) else ():
            digest = str(row[0]) if isinstance(row, list) and row else ""
            inputs[name] = made.get(digest) or f"sha256:{digest[:12]}"
        needs = dict.fromkeys(source[0] for source in inputs.values() if isinstance(source, tuple))
        uses = stage.uses or (action.uses if action else "")
        stages[id_] = OutlineStage(
            uses=uses,
            base=id_.partition("[")[0],
            push=stage.converges or uses.startswith("push."),
            needs=stage.after or tuple(needs),
            inputs=inputs,
        )
        for name, artifact in stage.artifacts.items():
            made.setdefault(artifact.digest, (id_, name))
    return Outline(
        name=record.name, pipeline=record.pipeline, files=record.files, target=record.target,
        live=record.live, started=record.started, stages=stages,
    )  # fmt: skip


def sources_of(stage: OutlineStage) -> dict[str, Source]:
    """Return where the inputs of a stage come from."""
    return {
        name: RefSource(*source) if isinstance(source, tuple) else PathSource(source)
        for name, source in stage.inputs.items()
    }
