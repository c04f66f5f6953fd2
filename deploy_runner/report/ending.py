"""The last screen of a run on a terminal: what the report's top says, in few short lines of plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..engine.runs import RunRecord
from .against import against
from .headline import Figure, Headline, headline
from .lines import listed

__all__ = ["ending"]

_NAMED = 2
"""So many causes are named; the others are counted."""


def ending(record: RunRecord, before: RunRecord | None) -> list[str]:
    """Return the sentences on a run that did something; `before` is the pipeline's run before it."""
    said = headline(record)
    sentences = [said.made.text, *(s.text for s in (said.chosen, said.refused) if s.stage)]
    figures = [_figures(said.figures)] if said.figures else []
    return [*sentences, *figures, _changed(record, said, before)]


def _figures(figures: Sequence[Figure]) -> str:
    """Return the figures in one sentence; the model is named once if they are all of one."""
    whose = {figure.of for figure in figures}
    shown = [
        f"{f.name} {f.value}"
        + (f" of {f.of}" if f.of and len(whose) > 1 else "")
        + (f" ({f.reference})" if f.reference else "")
        for f in figures
    ]
    return (f"{figures[0].of}: " if len(whose) == 1 and figures[0].of else "") + ", ".join(shown)


def _changed(record: RunRecord, said: Headline, before: RunRecord | None) -> str:
    if before is None:
        return "This is the first recorded run of this pipeline."
    moved = [
        f"{one.figure.name} was {one.then.value}"
        for one in against(said, headline(before))
        if one.then is not None and one.then.value != one.figure.value
    ]
    causes = list(_causes(record))
    shown = [*moved, *causes[:_NAMED], *([f"{len(causes) - _NAMED} more"] if len(causes) > _NAMED else [])]
    return f"Changed since run {before.number}: {'; '.join(shown)}."


def _causes(record: RunRecord) -> Iterator[str]:
    """Yield why the stages ran of which none waited for another one that did, in words without signs."""
    stages = record.stages
    did = {id_ for id_, entry in stages.items() if entry["state"] != "hit"}
    for id_ in (id_ for id_ in stages if id_ in did):
        reason = str(stages[id_].get("reason") or "")
        if reason and did.isdisjoint(map(str, listed(stages[id_].get("after")))):
            yield f"{id_}: {reason.replace('`', '').replace(' → ', ' to ')}"
