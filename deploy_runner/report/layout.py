"""Boxes and the arrows between them → where each is drawn, layer by layer from top to bottom."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from grandalf.graphs import graph_core

__all__ = ["Arrow", "Layout", "Place", "place"]

_ACROSS = 24.0
_DOWN = 46.0
_BESIDE_AN_ARROW = 10.0
_ROW = 1100.0
"""Parts without an arrow between them fill rows of this width, or of the widest part's."""


class Place(NamedTuple):
    """A box: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float


class Arrow(NamedTuple):
    """An arrow between the middles of two boxes, and the points by which it passes other layers."""

    source: str
    target: str
    points: tuple[tuple[float, float], ...]


class Layout(NamedTuple):
    """Where everything is drawn, from (0, 0)."""

    width: float
    height: float
    places: Mapping[str, Place]
    arrows: tuple[Arrow, ...]


class _View:
    """What the library reads of a box or an arrow, and writes: the middle of a box, the path of an arrow."""

    def __init__(self, width: float = 0.0, height: float = 0.0) -> None:
        self.w = width
        self.h = height
        self.xy = (0.0, 0.0)
        self.path: list[tuple[float, float]] = []

    def setpath(self, path: list[tuple[float, float]]) -> None:
        self.path = path


def place(names: Iterable[str], arrows: Iterable[tuple[str, str]], width: float, height: float) -> Layout:
    """Lay out boxes of one size by Sugiyama's method.

    Left out are arrows to a name that isn't among `names`, and from a box to itself. Arrows that close a
    cycle are drawn upwards.
    """
    from grandalf.graphs import Edge, Graph, Vertex

    boxes = {name: Vertex(name) for name in dict.fromkeys(names)}
    for box in boxes.values():
        box.view = _View(width, height)
    edges = []
    for source, target in dict.fromkeys(arrows):
        if source != target and source in boxes and target in boxes:
            edges.append(Edge(boxes[source], boxes[target]))
            edges[-1].view = _View()
    parts = [_drawn(part) for part in Graph([*boxes.values()], edges).C]
    right, bottom = _in_rows(parts)
    places = {}
    for name, box in boxes.items():
        x, y = box.view.xy
        places[name] = Place(round(x - width / 2, 1), round(y - height / 2, 1), width, height)
    return Layout(
        right, bottom, places, tuple(_arrow(edge.v[0].data, edge.v[1].data, edge.view) for edge in edges)
    )


def _arrow(source: str, target: str, view: _View) -> Arrow:
    return Arrow(source, target, tuple((round(x, 1), round(y, 1)) for x, y in view.path))


class _Part(NamedTuple):
    """A connected part of the graph, drawn somewhere."""

    views: list[_View]
    edges: list[_View]


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Have the first import of a module fail meanwhile.

    grandalf uses numpy where it can, in a layout that isn't used here, and its own arithmetic elsewhere; to
    import numpy takes longer than all else of a report.
    """
    modules: dict[str, Any] = sys.modules
    if name in modules:
        yield
        return
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]


@contextmanager
def _deep(calls: int) -> Iterator[None]:
    """Allow so many more calls inside each other: grandalf follows a chain of boxes by calling itself."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + calls)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _drawn(part: graph_core) -> _Part:
    with _absent("numpy"):
        from grandalf.layouts import SugiyamaLayout

    layout = SugiyamaLayout(part)
    layout.xspace, layout.yspace = _ACROSS, _DOWN
    layout.dw = _BESIDE_AN_ARROW  # An arrow that passes a layer needs less room than a box.
    with _deep(4 * part.order()):
        layout.init_all()
        layout.draw()
    for layer in layout.layers:
        _apart([item.view for item in layer])
    layout.draw_edges()
    return _Part([item.view for layer in layout.layers for item in layer], [e.view for e in part.E()])


def _apart(layer: list[_View]) -> None:
    """Move what overlaps its left neighbour to the right: the library's compaction lets that happen."""
    reached = float("-inf")
    for view in sorted(layer, key=lambda view: view.xy[0]):
        x = max(view.xy[0], reached + view.w / 2)
        view.xy = (x, view.xy[1])
        reached = x + view.w / 2 + _ACROSS / 2


def _in_rows(parts: list[_Part]) -> tuple[float, float]:
    """Move the parts beside each other and, where a row is full, below; return the size of all."""
    boxes = [_bounds(part) for part in parts]
    widest = max([_ROW, *(right - left for left, _, right, _ in boxes)])
    x = y = row = width = 0.0
    for part, (left, top, right, bottom) in zip(parts, boxes, strict=True):
        if x and x + right - left > widest:
            x, y, row = 0.0, y + row + _DOWN, 0.0
        _move(part, x - left, y - top)
        x += right - left
        width, row = max(width, x), max(row, bottom - top)
        x += _ACROSS
    return round(width, 1), round(y + row, 1)


def _bounds(part: _Part) -> tuple[float, float, float, float]:
    corners = [
        (v.xy[0] - v.w / 2, v.xy[1] - v.h / 2, v.xy[0] + v.w / 2, v.xy[1] + v.h / 2) for v in part.views
    ]
    lefts, tops, rights, bottoms = zip(*corners, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _move(part: _Part, right: float, down: float) -> None:
    for view in part.views:
        view.xy = (view.xy[0] + right, view.xy[1] + down)
    for edge in part.edges:
        edge.path = [(x + right, y + down) for x, y in edge.path]
