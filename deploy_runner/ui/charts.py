"""Figures as SVG: lines over runs, bars over the instances of a matrix; the style sheet colours them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from .text import number, visible

__all__ = ["COLORS", "Point", "bars", "lines"]

COLORS = 8
"""How many series a chart has colours for."""

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 12, 30
_ROW = 26
_LABEL = 220
_TICKS = 4


class Point(NamedTuple):
    """One value; `x` is the place of its run among those shown, `title` what is said of it."""

    x: int
    value: float
    title: str
    link: str


def lines(title: str, series: Mapping[str, Sequence[Point]], labels: Sequence[str]) -> Markup:
    """Return a chart of series by name over places with labels; what isn't finite is left out."""
    shown = {
        name: [point for point in points if math.isfinite(point.value)]
        for name, points in list(series.items())[:COLORS]
    }
    values = [point.value for points in shown.values() for point in points]
    low, high, step = _scale(min(values, default=0.0), max(values, default=1.0))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(place: int) -> float:
        return round(_LEFT + width * (place + 0.5) / max(len(labels), 1), 1)

    def y(value: float) -> float:
        return round(_TOP + height * (1 - (value - low) / (high - low)), 1)

    parts = [Markup("")]
    for index in range(round((high - low) / step) + 1):
        value = low + index * step
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                _LEFT, _WIDTH - _RIGHT, y(value), y(value)
            )
            + Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                _LEFT - 8, y(value) + 4, f"{value:.5g}"
            )
        )
    for place in _spread(len(labels)):
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                x(place), _HEIGHT - 10, labels[place]
            )
        )
    for color, points in enumerate(shown.values()):
        path = " ".join(f"{x(point.x)},{y(point.value)}" for point in points)
        parts.append(Markup('<g class="series s{}"><polyline points="{}"/>').format(color, path))
        parts += [
            Markup('<a href="{}"><circle cx="{}" cy="{}" r="4"><title>{}</title></circle></a>').format(
                point.link, x(point.x), y(point.value), visible(point.title)
            )
            for point in points
        ]
        parts.append(Markup("</g>"))
    return _svg(title, _HEIGHT, parts)


def bars(title: str, rows: Sequence[tuple[str, float]]) -> Markup:
    """Return a bar for each (name, value); the table beside it has what isn't finite."""
    finite = [(name, value) for name, value in rows if math.isfinite(value)]
    low = min([0.0, *(value for _, value in finite)])
    high = max([0.0, *(value for _, value in finite)])
    span = (high - low) or 1.0
    width = _WIDTH - _LABEL - 100

    def x(value: float) -> float:
        return round(_LABEL + width * (value - low) / span, 1)

    parts = [Markup("")]
    for index, (name, value) in enumerate(finite):
        top = _TOP + index * _ROW
        begin, end = sorted((x(0.0), x(value)))
        label = visible(name)
        parts.append(
            Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(
                _LABEL - 8, top + 15, label if len(label) <= 30 else label[:29] + "…"
            )
            + Markup(
                '<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>'
            ).format(begin, top + 3, round(max(end - begin, 1), 1), _ROW - 8, f"{label}: {number(value)}")
            + Markup('<text class="label" x="{}" y="{}">{}</text>').format(end + 6, top + 15, number(value))
        )
    return _svg(title, _TOP * 2 + max(len(finite), 1) * _ROW, parts)


def _svg(title: str, height: int, parts: list[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="group" aria-label="{}">').format(
        _WIDTH, height, visible(title)
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Return an axis that takes in two values: its ends and the distance of its ticks, a round number."""
    if high - low <= abs(high) * 1e-9:
        low, high = (low - abs(low) * 0.01, high + abs(high) * 0.01) if high else (-1.0, 1.0)
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 1e-300 else 1e-300
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step


def _spread(count: int) -> Sequence[int]:
    """Return which of so many labels have room."""
    every = max(1, math.ceil(count / 12))
    return range(count - 1, -1, -every)
