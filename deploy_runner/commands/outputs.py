"""The outputs of a run: a list of all, and after a run what it made and how to get it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..engine.runs import RunRecord, run_before
from ..types import Artifact, Json
from .options import Selection

__all__ = ["Row", "afterwards", "command", "rows_of", "table"]

_MOST_LINES = 9
"""So many lines follow the one that counts the stages."""


class Row(NamedTuple):
    """One output of a run."""

    stage: str
    output: str
    artifact: Artifact

    @property
    def name(self) -> str:
        """Return the name by which `get` takes it."""
        return f"{self.stage}.{self.output}"

    def as_dict(self) -> dict[str, Json]:
        """Return the row as JSON."""
        return {"stage": self.stage, "output": self.output, **self.artifact.as_dict()}


def rows_of(record: RunRecord, stages: Iterable[str]) -> list[Row]:
    """Return all outputs of these stages in a run."""
    return [Row(id_, name, made) for id_ in stages for name, made in record.artifacts(id_).items()]


def table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield the rows as lines with aligned columns."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def command(verb: str, selection: Selection, name: str) -> str:
    """Return the command that does something with a stage of this pipeline, as it was named."""
    config = "".join(f" --config {shlex.quote(c)}" for c in selection.config)
    sets = "".join(f" --set {shlex.quote(s)}" for s in selection.sets)
    return f"deploy-runner {verb} {shlex.quote(selection.path)} {shlex.quote(name)}{config}{sets}"


def afterwards(record: RunRecord, selection: Selection) -> Iterator[str]:
    """Yield what to say after a run: what it made, chose and changed, how to get it, where the report is."""
    from ..report.lines import fitted
    from ..report.made import NAMED, made, results

    found = results(record.stages) if record.exit_code == 0 else []
    tail = [f"to copy one: {command('get', selection, found[-1].name)}"] if found else []
    if len(found) > NAMED:
        tail.insert(0, f"to list all: {command('get', selection, '--list')}")
    report = record.folder / "report.html"
    if report.exists():
        from ..report.ending import ending

        said = ending(record, run_before(record))
        tail.append(f"report: {_from_here(report)}")
    else:  # A run with nothing to do.
        said = [made(record, found)] if record.stages else []
    yield from fitted(said, _MOST_LINES - len(tail))
    yield from tail


def _from_here(path: Path) -> str:
    near = os.path.relpath(path)
    return str(path) if near.startswith(os.pardir) else near
