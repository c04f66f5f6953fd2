"""What the pushes of each pipeline have done, as their last runs recorded it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from .outlines import outline_for
from .overview import pipelines_of
from .shapes import Record, flat_figures
from .site import Site

__all__ = ["PushStage", "Pushed", "pushed"]

_FIGURES = 8


class PushStage(NamedTuple):
    """A push in a run."""

    id: str
    uses: str
    state: str
    said: str
    figures: dict[str, Any]


class Pushed(NamedTuple):
    """The pushes of a pipeline's last run. `words` name it for the verb `status`."""

    id: str
    place: str
    exists: bool
    record: Record
    stages: list[PushStage]
    words: list[str]


def pushed(site: Site) -> list[Pushed]:
    """Return every pipeline of the store that pushes, by its last finished run."""
    found = []
    for known in pipelines_of(site, [run for run in site.library.runs() if run.phase == "finished"]):
        record = site.library.record(known.last.id)
        stages = _stages(site, record) if record else []
        if record is not None and stages:
            words = _words(site, known.files)
            found.append(Pushed(known.id, known.place, known.exists, record, stages, words))
    return found


def _stages(site: Site, record: Record) -> list[PushStage]:
    outline = outline_for(site.library, record)
    found = []
    for id_, node in outline.stages.items() if outline else ():
        ended = record.stages.get(id_)
        if node.push and ended is not None:
            figures = dict(list(flat_figures(ended.figures).items())[:_FIGURES])
            said = ended.error or ended.reason
            found.append(PushStage(id_, node.uses, ended.state, said, figures))
    return found


def _words(site: Site, files: tuple[str, ...]) -> list[str]:
    """Return the pipeline and its overlays as arguments, by absolute paths."""
    home = os.path.realpath(site.home)
    pipeline, *overlays = [os.path.normpath(os.path.join(home, file)) for file in files]
    return [pipeline, *(word for overlay in overlays for word in ("--config", overlay))]
