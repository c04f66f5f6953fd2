"""The stages of a run → the graph as a picture (SVG) that a page embeds, each box a link to its stage."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import quote

from ..types import Graph, Json
from .layout import Arrow, Layout, place
from .lines import MARKS, Entries, duration, listed, size

__all__ = ["STYLE", "Box", "anchor", "arrows_of", "boxes_of", "draw", "entries_of"]

_WIDTH, _HEIGHT = 196.0, 62.0
_LETTERS, _SMALL = 24, 28
_MARGIN = 8.0
_SMALLEST = 0.62
"""A narrow page shrinks the picture to this; then it scrolls."""

_MARKS: Mapping[str, str] = {state: mark for state, (mark, _) in MARKS.items()}

STYLE = """
.graph { overflow-x: auto; }
.graph svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.graph rect { fill: var(--box, #f6f8fa); stroke: var(--edge, #8c959f); stroke-width: 1.5; }
.graph text { fill: var(--text, #1f2328); }
.graph .name { font-weight: 600; font-size: 13px; }
.graph .uses, .graph .took { fill: var(--dim, #59636e); }
.graph path { fill: none; stroke: var(--edge, #8c959f); stroke-width: 1.2; }
.graph marker path { fill: var(--edge, #8c959f); stroke: none; }
.graph a:focus { outline: none; }
.graph a:focus rect, .graph a:hover rect { stroke-width: 3.5; }
.graph .ran rect, .graph .converged rect { stroke: var(--ok, #1a7f37); }
.graph .failed rect, .graph .interrupted rect { stroke: var(--bad, #cf222e); stroke-width: 2.5; }
.graph .skipped rect, .graph .healed rect { stroke: var(--warn, #9a6700); stroke-dasharray: 5 3; }
.graph .running rect { stroke: var(--run, #0969da); stroke-width: 2.5; }
.graph .waiting rect { stroke-dasharray: 2 3; }
"""
"""The picture's own style; colours come from the page's variables, where it has them."""


class Box(NamedTuple):
    """A box of the picture: one stage, or the instances of a matrix that ended alike.

    `state` is a stage's, or "running", or "waiting"; `took` a few words such as `2.3 s, 96 KiB`; `stages`
    the ids that it stands for, and `after` the ids of the stages before them.
    """

    name: str
    uses: str
    state: str
    took: str
    stages: tuple[str, ...]
    after: tuple[str, ...]


def anchor(stage: str) -> str:
    """Return the id of the stage's section in a page; it needs no escaping."""
    return f"stage-{quote(stage, safe='')}"


def entries_of(graph: Graph) -> dict[str, dict[str, Json]]:
    """Return entries of stages that have not been run, to draw a graph by."""
    return {
        id_: {"state": "waiting", "uses": node.uses, "after": list(node.upstream)}
        for id_, node in graph.stages.items()
    }


def boxes_of(stages: Entries, *, by_state: bool = True) -> list[Box]:
    """Return the boxes of a run: the instances of a matrix are one box, or one for each state.

    Without `by_state` the boxes stay the same while a run continues.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for id_, stage in stages.items():
        state = str(stage["state"])
        base = id_.partition("[")[0] if "[" in id_ else id_
        groups.setdefault((base, state if by_state or "[" not in id_ else ""), []).append(id_)
    return [_box(base, ids, [stages[id_] for id_ in ids]) for (base, _), ids in groups.items()]


def _box(base: str, ids: list[str], entries: list[Mapping[str, Json]]) -> Box:
    name = ids[0] if len(ids) == 1 else f"{base} ({len(ids)} instances)"
    seconds = max((float(str(entry.get("seconds") or 0)) for entry in entries), default=0.0)
    sizes = [made for entry in entries if (made := _size_of(entry)) is not None]
    took = ("up to " if len(ids) > 1 else "") + duration(seconds) if seconds else ""
    after = dict.fromkeys(str(id_) for entry in entries for id_ in listed(entry.get("after")))
    return Box(
        name,
        str(entries[0].get("uses", "")),
        _state([str(entry["state"]) for entry in entries]),
        ", ".join(filter(None, [took, size(max(sizes)) if sizes else ""])),
        tuple(ids),
        tuple(after),
    )


_WORST = ("failed", "interrupted", "running", "skipped", "healed", "ran", "converged", "waiting", "hit")


def _state(states: Sequence[str]) -> str:
    """Return what a box of several stages shows: the state that a reader must know of first."""
    if "waiting" in states and {*states} & {"ran", "hit", "converged", "healed"} and "failed" not in states:
        return "running"
    return min(states, key=lambda state: _WORST.index(state) if state in _WORST else len(_WORST))


def _size_of(entry: Mapping[str, Json]) -> int | None:
    """Return the size of the first artifact."""
    made = entry.get("artifacts")
    first = next(iter(made.values()), None) if isinstance(made, dict) else None
    return int(str(first["size"])) if isinstance(first, dict) else None


def draw(
    boxes: Sequence[Box],
    *,
    title: str,
    styled: bool = True,
    href: Callable[[Box], str] = lambda box: f"#{quote(anchor(box.stages[0]))}",
) -> str:
    """Return the picture as an `<svg>` element to be put into a `<div class="graph">` beside `STYLE`.

    Only one that is `styled` says itself how far a narrow page may shrink it, by a `style` attribute.
    """
    layout = place(map(str, range(len(boxes))), arrows_of(boxes), _WIDTH, _HEIGHT)
    return "\n".join(_svg(boxes, layout, title, href, styled=styled))


def arrows_of(boxes: Sequence[Box]) -> list[tuple[str, str]]:
    """Return which box each box directly follows, as pairs of their places; what is implied is left out."""
    names = {id_: str(number) for number, box in enumerate(boxes) for id_ in box.stages}
    return _needed(
        [(names[before], str(n)) for n, box in enumerate(boxes) for before in box.after if before in names]
    )


def _needed(arrows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the arrows without those that a longer way implies: sorted by their ends, as stages are."""
    before: dict[str, set[str]] = {}
    all_before: dict[str, set[str]] = {}
    for source, target in arrows:
        before.setdefault(target, set()).add(source)
    for target in dict.fromkeys(target for _, target in arrows):
        further: set[str] = set().union(*(all_before.get(source, set()) for source in before[target]))
        all_before[target] = before[target] | further
        before[target] -= further
    return [(source, target) for source, target in dict.fromkeys(arrows) if source in before[target]]


def _svg(
    boxes: Sequence[Box], layout: Layout, title: str, href: Callable[[Box], str], *, styled: bool
) -> Iterator[str]:
    width, height = layout.width + 2 * _MARGIN, layout.height + 2 * _MARGIN
    style = f'style="min-width:{width * _SMALLEST:.0f}px" ' if styled else ""
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="group" aria-labelledby="graph-title" '
        f'width="{width:g}" height="{height:g}" {style}'
        f'viewBox="{-_MARGIN:g} {-_MARGIN:g} {width:g} {height:g}">'
    )
    yield f'<title id="graph-title">{escape(title)}</title>'
    yield (
        '<defs><marker id="graph-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    paths = " ".join(f'<path d="{_path(arrow)}" marker-end="url(#graph-tip)"/>' for arrow in layout.arrows)
    yield f'<g aria-hidden="true">{paths}</g>'
    for number, box in enumerate(boxes):
        spot = layout.places[str(number)]
        took = f"{_MARKS.get(box.state, '')} {_cut(_said(box), _SMALL)}".strip()
        said = ": ".join(filter(None, [box.name, ", ".join(filter(None, [box.uses, box.state, box.took]))]))
        yield (
            f'<a class="{escape(box.state)}" href="{escape(href(box))}" aria-label="{escape(said)}">'
            f'<g transform="translate({spot.x:g} {spot.y:g})"><title>{escape(said)}</title>'
            f'<rect width="{spot.width:g}" height="{spot.height:g}" rx="6"/>'
            f'<text class="name" x="10" y="20">{escape(_cut(box.name))}</text>'
            f'<text class="uses" x="10" y="36">{escape(_cut(box.uses, _SMALL))}</text>'
            f'<text class="took" x="10" y="52">{escape(took)}</text></g></a>'
        )
    yield "</svg>"


def _said(box: Box) -> str:
    return f"{box.state}, {box.took}" if box.took else box.state


def _path(arrow: Arrow) -> str:
    """Return the curve of an arrow from edge to edge; it passes the layers between straight down."""
    half = _HEIGHT / 2
    down = half if arrow.points[-1][1] >= arrow.points[0][1] else -half
    drawn = f"M{arrow.points[0][0]:g} {arrow.points[0][1] + down:g}"
    for (x, y), (to_x, to_y) in pairwise(arrow.points):
        middle = (y + to_y) / 2
        drawn += f"C{x:g} {middle:g} {to_x:g} {middle:g} {to_x:g} {to_y - down:g}V{to_y + down:g}"
    return drawn[: drawn.rindex("V")]


def _cut(text: str, room: int = _LETTERS) -> str:
    """Return the text as it fits into a box: wide letters, as of Chinese, count twice."""
    for index, letter in enumerate(text):
        room -= 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if room < 0:
            return text[: max(1, index - 1)] + "…"
    return text
