"""The graph of a run as a picture, as it ended or as far as it has come."""

from __future__ import annotations

from markupsafe import Markup

from ..report.graph_svg import boxes_of, draw
from ..types import Json
from .run_page import Row
from .shapes import Outline
from .text import visible

__all__ = ["MOST", "graph_of"]

MOST = 1000
"""How many boxes are drawn: a picture of more tells nobody anything, and takes seconds."""


def graph_of(rows: list[Row], outline: Outline, *, going: bool) -> Markup:
    """Return the picture, whose boxes lead to the rows; empty where it would have too many boxes.

    The boxes of a run that is `going` stay where they are.
    """
    entries: dict[str, dict[str, Json]] = {}
    for row in rows:
        node = outline.stages.get(row.id)
        entries[row.id] = {
            "state": "waiting" if row.state == "not started" else visible(row.state),
            "uses": visible(row.uses),
            "after": list(node.needs) if node else [],
            "seconds": row.seconds,
            "artifacts": {name: {"size": artifact.size} for name, artifact in row.artifacts.items()},
        }
    boxes = boxes_of(entries, by_state=not going)
    if len(boxes) > MOST:
        return Markup("")
    shown = [box._replace(name=visible(box.name)) for box in boxes]
    # The page's policy allows no style in an element: the style sheet says how small a picture may become.
    picture = draw(shown, title="The stages of this run and what each needs", styled=False)
    return Markup(picture)  # Names are escaped in there.
