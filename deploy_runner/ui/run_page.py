"""The stages of one run, as rows: of a record, or as far as a run has come."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..report.headline import Headline, headline
from .following import Follower
from .library import Library
from .shapes import ArtifactShape, Outline, Record, flat_figures

__all__ = ["Row", "headline_of", "stage_rows"]

_FIGURES = 40


class Row(NamedTuple):
    """A stage of a run; `cut` figures are left out."""

    id: str
    uses: str
    state: str
    seconds: float
    since_s: float
    reason: str
    error: str
    figures: dict[str, Any]
    cut: int
    artifacts: dict[str, ArtifactShape]


def stage_rows(
    record: Record | None, outline: Outline | None, follower: Follower | None, *, running: bool
) -> list[Row]:
    """Return the stages in order. What a stopped run had begun and not ended is interrupted."""
    if record is not None:
        uses = {id_: node.uses for id_, node in outline.stages.items()} if outline else {}
        return [_recorded(record, id_, uses.get(id_, "")) for id_ in record.stages]
    stages = outline.stages if outline else {}
    known = dict(follower.stages) if follower else {}
    rows = []
    for id_ in dict.fromkeys((*stages, *known)):
        uses_ = stages[id_].uses if id_ in stages else ""
        at = known.get(id_)
        if at is None:
            rows.append(Row(id_, uses_, "waiting" if running else "not started", 0, 0, "", "", {}, 0, {}))
            continue
        state = at.state if running or at.state != "running" else "interrupted"
        rows.append(Row(id_, uses_, state, at.seconds, at.since_s, at.reason, at.error, {}, 0, {}))
    return rows


def headline_of(library: Library, id_: str) -> Headline | None:
    """Return what is to be said first of a finished run.

    Nothing, where its figures have other shapes than those of today: the page shows the rest.
    """
    record = library.run_record(id_)
    try:
        return headline(record) if record is not None else None
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _recorded(record: Record, id_: str, uses: str) -> Row:
    stage = record.stages[id_]
    figures = flat_figures(stage.figures)
    shown = dict(list(figures.items())[:_FIGURES])
    return Row(
        id_, uses, stage.state, stage.seconds, 0, stage.reason, stage.error, shown,
        len(figures) - len(shown), stage.artifacts,
    )  # fmt: skip
