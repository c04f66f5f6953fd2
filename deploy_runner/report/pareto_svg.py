"""What `select` compared → a picture (SVG): loss of accuracy over latency or size; the best is top left."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from .candidates import Candidate, Choice
from .lines import size

__all__ = ["STYLE", "draw"]

_WIDTH, _HEIGHT = 460.0, 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 20.0, 18.0, 44.0
_LETTER, _LINE = 7.0, 14.0

STYLE = """
.pareto svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.pareto text { fill: var(--text, #1f2328); }
.pareto .axis { stroke: var(--edge, #8c959f); fill: none; }
.pareto .limit { stroke: var(--bad, #cf222e); stroke-dasharray: 5 4; }
.pareto .good { fill: var(--ok, #1a7f37); }
.pareto .bad { stroke: var(--bad, #cf222e); stroke-width: 2.5; fill: none; }
.pareto .chosen { font-weight: 700; }
"""


class _Point(NamedTuple):
    number: int
    candidate: Candidate
    x: float
    y: float


def draw(choice: Choice) -> str:
    """Return the picture, or nothing if fewer than two candidates have both figures."""
    by_size = choice.objective == "size"
    found = [
        (n, one, float(cost), one.drop)
        for n, one in enumerate(choice.candidates, 1)
        if (cost := one.bytes if by_size else one.latency_us) is not None and one.drop is not None
    ]
    if len(found) < 2:
        return ""
    limit = choice.max_drop
    costs = _padded([cost for _, _, cost, _ in found])
    losses = _padded([*(drop for *_, drop in found), *([] if limit is None else [limit])])
    points = [_Point(n, one, _across(cost, costs), _down(drop, losses)) for n, one, cost, drop in found]
    lines = _svg(choice, points, None if limit is None else _down(limit, losses))
    return "\n".join([*lines, *_axes(costs, losses, by_size=by_size), "</svg>"])


def _padded(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * 0.12 or abs(high) * 0.1 or 0.5
    return low - pad, high + pad


def _across(value: float, ends: tuple[float, float]) -> float:
    return round(_LEFT + (value - ends[0]) / (ends[1] - ends[0]) * (_WIDTH - _LEFT - _RIGHT), 1)


def _down(value: float, ends: tuple[float, float]) -> float:
    return round(_TOP + (value - ends[0]) / (ends[1] - ends[0]) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _svg(choice: Choice, points: list[_Point], limit: float | None) -> Iterator[str]:
    rejected = sum(bool(one.rejected) for one in choice.candidates)
    chosen = choice.chosen.name if choice.chosen else "none"
    said = f"{len(points)} candidates, {rejected} rejected, chosen: {chosen}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(said)}" '
        f'width="{_WIDTH:g}" height="{_HEIGHT:g}" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}">'
    )
    if limit is not None:
        yield f'<path class="limit" d="M{_LEFT:g} {limit:g}H{_WIDTH - _RIGHT:g}"/>'
        limited = f'x="{_WIDTH - _RIGHT:g}" y="{limit - 4:g}" text-anchor="end"'
        yield f"<text {limited}>the limit: {choice.max_drop:g}</text>"
    taken: list[tuple[float, float, float]] = []
    for point in points:
        yield _mark(point, chosen=point.candidate == choice.chosen)
        yield _label(point, taken, chosen=point.candidate == choice.chosen)


def _mark(point: _Point, *, chosen: bool) -> str:
    x, y = point.x, point.y
    title = f"<title>{escape(point.candidate.name)}</title>"
    if point.candidate.rejected:
        return f'<path class="bad" d="M{x - 5:g} {y - 5:g}l10 10m0 -10l-10 10">{title}</path>'
    if chosen:
        return f'<path class="good" d="M{x:g} {y - 9:g}l9 9l-9 9l-9 -9z">{title}</path>'
    return f'<circle class="good" cx="{x:g}" cy="{y:g}" r="5">{title}</circle>'


def _label(point: _Point, taken: list[tuple[float, float, float]], *, chosen: bool) -> str:
    """Return the point's number, and the name of the chosen one, where no other label is."""
    text = f"{point.number} chosen" if chosen else str(point.number)
    wide = len(text) * _LETTER
    spots = [(point.x + 11, point.y + 4 + _LINE * step) for step in (0, -1, 1, -2, 2, -3, 3)]
    x, y = next((spot for spot in spots if not any(_meet(*spot, wide, *other) for other in taken)), spots[0])
    taken.append((x, y, wide))
    kind = "chosen" if chosen else "number"
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{text}</text>'


def _meet(x: float, y: float, wide: float, other_x: float, other_y: float, other_wide: float) -> bool:
    return abs(y - other_y) < _LINE - 1 and x < other_x + other_wide and other_x < x + wide


def _axes(costs: tuple[float, float], losses: tuple[float, float], *, by_size: bool) -> Iterator[str]:
    low, bottom, right = _LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    yield f'<path class="axis" d="M{low:g} {_TOP:g}V{bottom:g}H{right:g}"/>'
    for share in (0.1, 0.5, 0.9):
        cost = costs[0] + share * (costs[1] - costs[0])
        loss = losses[0] + share * (losses[1] - losses[0])
        shown = size(int(max(0.0, cost))) if by_size else f"{cost:.3g}"
        yield f'<text x="{_across(cost, costs):g}" y="{bottom + 16:g}" text-anchor="middle">{shown}</text>'
        yield f'<text x="{low - 6:g}" y="{_down(loss, losses) + 4:g}" text-anchor="end">{loss:.2f}</text>'
    name = "size" if by_size else "median latency, µs"
    yield f'<text x="{(low + right) / 2:g}" y="{_HEIGHT - 8:g}" text-anchor="middle">{name}</text>'
    middle = (_TOP + bottom) / 2
    turned = f'transform="translate(13 {middle:g}) rotate(-90)" text-anchor="middle"'
    yield f"<text {turned}>loss of accuracy, points</text>"
