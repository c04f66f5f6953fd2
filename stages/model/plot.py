"""Draw the plots of reports as SVG whose bytes depend on the values alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GOOD, _BAD, _LINE = "#1a7f37", "#cf222e", "#777777"


class Point(NamedTuple):
    """A named point; the refused ones are drawn in another colour."""

    name: str
    x: float
    y: float
    refused: bool


def pareto(path: Path, points: Sequence[Point], chosen: str, *, x: str, y: str, limit: float | None) -> None:
    """Draw points of which less is better on both axes, joined where no other is better on both."""
    figure, axes = _begin(width=7.0, height=4.2)
    best = front(points)
    axes.step([p.x for p in best], [p.y for p in best], where="post", color=_LINE, linewidth=1)
    for point in points:
        marker = "*" if point.name == chosen else "o"
        axes.scatter(point.x, point.y, marker=marker, s=130 if marker == "*" else 45, zorder=3,
                     color=_BAD if point.refused else _GOOD)  # fmt: skip
        axes.annotate(point.name, (point.x, point.y), xytext=(6, 5), textcoords="offset points")
    if limit is not None:
        axes.axhline(limit, color=_BAD, linestyle="--", linewidth=1)
    axes.set(xlabel=x, ylabel=y)
    axes.margins(0.15)
    _save(figure, path)


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other is better than on both axes, from left to right."""
    kept = [p for p in points if not any(_dominates(other, p) for other in points)]
    return sorted(kept, key=lambda p: (p.x, p.y, p.name))


def _dominates(a: Point, b: Point) -> bool:
    return a.x <= b.x and a.y <= b.y and (a.x < b.x or a.y < b.y)


def bars(path: Path, names: Sequence[str], values: Sequence[float], *, label: str) -> None:
    """Draw one horizontal bar for each name, the first at the top."""
    figure, axes = _begin(width=7.0, height=0.9 + 0.3 * len(names))
    axes.barh(range(len(names)), values, color=_GOOD)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    _save(figure, path)


def _begin(*, width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "deploy-runner", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
