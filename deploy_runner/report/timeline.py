"""When the stages of a run ran → bars side by side, and the way that decided how long the run took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..types import Json
from .candidates import number
from .lines import Entries, listed

__all__ = ["Bar", "Timeline", "timeline"]

_WAIT_S = 0.05
"""Less than this between two stages is the runner's own time, not a wait."""


class Bar(NamedTuple):
    """A stage that ran: when it began, in seconds since the run did, and how long it took.

    `critical`: the run could not have ended earlier unless this stage had. `waited_s` is how long it waited
    for a free core or another resource, once the stages before it had ended.
    """

    stage: str
    state: str
    start_s: float
    seconds: float
    critical: bool
    waited_s: float

    @property
    def end_s(self) -> float:
        """When it ended."""
        return self.start_s + self.seconds


class Timeline(NamedTuple):
    """The bars in lanes, so that those of a lane don't overlap, and the critical path in its order.

    `seconds` is the length of the run, `busy_s` the time of all stages together.
    """

    lanes: tuple[tuple[Bar, ...], ...]
    path: tuple[Bar, ...]
    seconds: float
    busy_s: float

    @property
    def slowest(self) -> list[Bar]:
        """All bars, the longest first."""
        return sorted((bar for lane in self.lanes for bar in lane), key=lambda bar: -bar.seconds)


def timeline(stages: Entries, seconds: float) -> Timeline:
    """Return the timeline of a run that took `seconds`; stages that didn't run are in none."""
    spans = {id_: span for id_, entry in stages.items() if (span := _span(entry)) is not None}
    way = _critical(stages, spans)
    bars = sorted(
        (
            Bar(id_, str(stages[id_]["state"]), start, took, id_ in way, _waited(stages[id_], start, spans))
            for id_, (start, took) in spans.items()
        ),
        key=lambda bar: (bar.start_s, bar.stage),
    )
    lanes: list[list[Bar]] = []
    for bar in bars:
        free = next((lane for lane in lanes if lane[-1].end_s <= bar.start_s + _WAIT_S / 10), None)
        if free is None:
            lanes.append([bar])
        else:
            free.append(bar)
    length = max([seconds, *(bar.end_s for bar in bars)])
    path = tuple(bar for bar in bars if bar.critical)
    return Timeline(tuple(map(tuple, lanes)), path, length, sum(bar.seconds for bar in bars))


def _span(entry: Mapping[str, Json]) -> tuple[float, float] | None:
    start, took = number(entry.get("start")), number(entry.get("seconds"))
    return None if start is None or took is None else (max(0.0, start), took)


def _before(entry: Mapping[str, Json], spans: Mapping[str, tuple[float, float]]) -> list[str]:
    return [str(id_) for id_ in listed(entry.get("after")) if id_ in spans]


def _critical(stages: Entries, spans: Mapping[str, tuple[float, float]]) -> set[str]:
    """Return the stages of the critical path: from the one that ended last, always back to what it needed."""

    def end(id_: str) -> float:
        return sum(spans[id_])

    way: set[str] = set()
    last = max(spans, key=end, default=None)
    while last is not None and last not in way:
        way.add(last)
        last = max(_before(stages[last], spans), key=end, default=None)
    return way


def _waited(entry: Mapping[str, Json], start: float, spans: Mapping[str, tuple[float, float]]) -> float:
    waited = start - max((sum(spans[id_]) for id_ in _before(entry, spans)), default=start)
    return waited if waited > _WAIT_S else 0.0
