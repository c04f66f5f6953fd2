"""Any figure over time and over the instances of a matrix."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from ..report.candidates import number
from .library import Library
from .shapes import Record, flat_figures

__all__ = ["RUNS", "Choice", "Series", "choices", "series_of"]

RUNS = 200
"""How many runs of a pipeline are looked at, the newest first."""


class Choice(NamedTuple):
    """A figure that can be chosen: that of a stage, or of each instance of its matrix."""

    stage: str
    figure: str

    @property
    def address(self) -> str:
        """Return it as a part of an address; names of stages have no slash."""
        return f"{self.stage}/{self.figure}"


class Series(NamedTuple):
    """The values of a figure by instance, in runs from the oldest on: instance → (run, value)."""

    runs: list[str]
    values: dict[str, list[tuple[str, float]]]


def choices(records: list[Record]) -> list[Choice]:
    """Return the figures that are numbers in some of these runs."""
    found = {
        Choice(id_.partition("[")[0], name): None
        for record in records
        for id_, stage in record.stages.items()
        for name, value in flat_figures(stage.figures).items()
        if number(value) is not None
    }
    return list(found)


def series_of(library: Library, pipeline: str, choice: Choice, limit: int = RUNS) -> Series:
    """Return the figure in the runs of a pipeline, each in which its stage has it."""
    runs: list[str] = []
    values: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for run in reversed(list(_finished(library, pipeline, limit))):
        found = False
        for id_, figures in library.figures(run).items():
            if id_.partition("[")[0] != choice.stage:
                continue
            value = number(flat_figures(figures).get(choice.figure))
            if value is not None:
                values[id_].append((run, value))
                found = True
        if found:
            runs.append(run)
    return Series(runs, dict(values))


def _finished(library: Library, pipeline: str, limit: int) -> list[str]:
    found = []
    for run in library.runs(pipeline):
        if run.phase == "finished":
            found.append(run.id)
        if len(found) == limit:
            break
    return found
