"""The graph of a run in the language of Mermaid, which GitHub draws."""

from __future__ import annotations

from collections.abc import Iterator

from .graph_svg import arrows_of, boxes_of
from .lines import Entries

__all__ = ["flowchart"]

_MOST = 60
"""Boxes: of more, nobody can read the picture in the width of a page of GitHub's."""
_SPECIAL = str.maketrans({char: f"#{ord(char)};" for char in "\"'`#&;<>[](){}|\\\r\n"})


def flowchart(stages: Entries) -> Iterator[str]:
    """Yield the lines of a block of Markdown; nothing where the graph is too large to be read."""
    boxes = boxes_of(stages)
    if not 1 < len(boxes) <= _MOST:
        return
    yield "```mermaid"
    yield "graph TD"
    for number, box in enumerate(boxes):
        state = ", ".join(filter(None, (box.state, box.took)))
        yield f'    s{number}["{box.name.translate(_SPECIAL)}<br><small>{state}</small>"]:::{box.state}'
    for source, target in arrows_of(boxes):
        yield f"    s{source} --> s{target}"
    yield "    classDef failed stroke:#cf222e,stroke-width:3px"
    yield "    classDef skipped stroke-dasharray:5 3"
    yield "```"
    yield ""
