"""Two runs side by side: the states of their stages, why they differ, figures and outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..engine.keys import differences
from ..report.candidates import number
from .library import Library
from .outlines import outline_for, sources_of
from .shapes import Outline, Record, RecordStage, flat_figures

__all__ = ["Difference", "StagePair", "compare"]

_REASONS = 20


class Difference(NamedTuple):
    """A figure or an output that two runs have differently; `change` is relative, for numbers."""

    name: str
    old: Any
    new: Any
    change: float | None = None


class StagePair(NamedTuple):
    """A stage in two runs; one that a run doesn't have is None. `reasons` say what its key differs in."""

    id: str
    old: RecordStage | None
    new: RecordStage | None
    reasons: list[str]
    figures: list[Difference]
    outputs: list[Difference]

    @property
    def differs(self) -> bool:
        """Say whether anything but the time differs."""
        old, new = self.old, self.new
        if old is None or new is None:
            return True
        ended = old.state != new.state and {old.state, new.state} - {"ran", "hit", "healed", "converged"}
        return bool(self.reasons or self.figures or self.outputs or ended)


def compare(library: Library, old: Record, new: Record) -> list[StagePair]:
    """Return the stages of two runs, in the order of the newer, then those that only the older has."""
    outline = outline_for(library, new)
    names = dict.fromkeys((*new.stages, *old.stages))
    return [_pair(library, outline, id_, old.stages.get(id_), new.stages.get(id_)) for id_ in names]


def _pair(
    library: Library, outline: Outline | None, id_: str, old: RecordStage | None, new: RecordStage | None
) -> StagePair:
    if old is None or new is None:
        return StagePair(id_, old, new, [], [], [])
    figures = _differing(flat_figures(old.figures), flat_figures(new.figures))
    outputs = _differing(
        {name: artifact.digest for name, artifact in old.artifacts.items()},
        {name: artifact.digest for name, artifact in new.artifacts.items()},
    )
    return StagePair(id_, old, new, _reasons(library, outline, id_, old, new), figures, outputs)


def _reasons(
    library: Library, outline: Outline | None, id_: str, old: RecordStage, new: RecordStage
) -> list[str]:
    """Return what the keys of a stage differ in, as `explain` says it; nothing for equal keys."""
    if old.key == new.key or not old.key or not new.key:
        return []
    before, after = library.action(old.key), library.action(new.key)
    if before is None or after is None:
        return ["its action key differs; the store does not have the action records of both to compare"]
    node = outline.stages.get(id_) if outline else None
    changes = differences(before.preimage, after.preimage, sources_of(node) if node else {})
    said = [str(change) for change in changes]
    return said[:_REASONS] + ([f"and {len(said) - _REASONS} more"] if len(said) > _REASONS else [])


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    return [
        Difference(name, old.get(name), new.get(name), _relative(old.get(name), new.get(name)))
        for name in dict.fromkeys((*new, *old))
        if old.get(name) != new.get(name)
    ]


def _relative(old: Any, new: Any) -> float | None:
    """Return the change of a number as a part of the old one."""
    before, after = number(old), number(new)
    return (after - before) / abs(before) if before and after is not None else None
