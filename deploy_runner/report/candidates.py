"""The figures of `select` → what was compared, what was chosen, and what was rejected for which reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..types import Json
from .lines import Entries

__all__ = ["Candidate", "Choice", "choices", "figure_of", "number"]


class Candidate(NamedTuple):
    """One of the models that were compared: accuracy in percent, its loss in points; empty if unknown.

    `rejected` is the reason, empty for one that was accepted; `front` says that none is better in everything.
    """

    name: str
    accuracy: float | None
    drop: float | None
    bytes: int | None
    latency_us: float | None
    rejected: str
    front: bool


class Choice(NamedTuple):
    """What a stage compared; `chosen` is None if it rejected all, `max_drop` the largest loss it accepts."""

    stage: str
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    objective: str
    max_drop: float | None

    @property
    def largest(self) -> Candidate | None:
        """The largest candidate: what the chosen one is compared with, unless it is itself the largest."""
        known = [candidate for candidate in self.candidates if candidate.bytes is not None]
        found = max(known, key=lambda candidate: candidate.bytes or 0, default=None)
        return None if found == self.chosen else found


def choices(stages: Entries) -> list[Choice]:
    """Return what the stages of a run chose, in their order: stages whose figures have `candidates`."""
    return [choice for id_, entry in stages.items() if (choice := _choice(id_, entry)) is not None]


def _choice(id_: str, entry: Mapping[str, Json]) -> Choice | None:
    rows = figure_of(entry, "candidates")
    if not isinstance(rows, dict) or not all(
        isinstance(row, dict) and "refused" in row for row in rows.values()
    ):
        return None
    found = tuple(_candidate(name, row) for name, row in rows.items() if isinstance(row, dict))
    chosen = next((one for one in found if one.name == figure_of(entry, "chosen")), None)
    objective = str(figure_of(entry, "objective") or "")
    return Choice(id_, found, chosen, objective, number(figure_of(entry, "max_drop")))


def _candidate(name: str, row: Mapping[str, Json]) -> Candidate:
    bytes_ = number(row.get("bytes"))
    return Candidate(
        name,
        number(row.get("accuracy")),
        number(row.get("drop")),
        None if bytes_ is None else int(bytes_),
        number(row.get("latency_us")),
        str(row["refused"] or ""),
        row.get("pareto") is True,
    )


def figure_of(entry: Mapping[str, Json], name: str) -> Json:
    """Return a figure of a stage, or None."""
    figures = entry.get("figures")
    return figures.get(name) if isinstance(figures, dict) else None


def number(value: Json) -> float | None:
    """Return a figure if it is a number; those that JSON can't hold are strings."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
