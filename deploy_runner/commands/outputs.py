"""The outputs of a run: a list of all, and after a run those that people came for.

A result is the first output of a stage that no other stage takes further: neither a push nor a check does,
whose own outputs say what was done and found.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..engine.runs import RunRecord
from ..types import Artifact, Graph, Json, RefSource, StageNode
from .options import Selection

__all__ = ["Row", "afterwards", "command", "rows_of", "table"]

_MOST_RESULTS = 5
_REPORT = "report"
"""What the first output of a check is called."""


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


def afterwards(graph: Graph, record: RunRecord, selection: Selection) -> Iterator[str]:
    """Yield what to say after a run: the results, how to get one, and where the report is."""
    from ..report.lines import size

    found = _results(graph, record) if record.exit_code == 0 else []
    shown = found[-_MOST_RESULTS:]
    rows = [(row.name, Path(graph.stages[row.stage].outputs[row.output].path).name, size(row.artifact.size))
            for row in shown]  # fmt: skip
    yield from table(rows)
    if len(found) > len(shown):
        yield f"and {len(found) - len(shown)} more: {command('get', selection, '--list')}"
    if shown:
        yield f"to copy one: {command('get', selection, shown[-1].name)}"
    report = record.folder / "report.html"
    if report.exists():
        yield f"report: {_from_here(report)}"


def _results(graph: Graph, record: RunRecord) -> list[Row]:
    makers = [graph.stages[id_] for id_ in graph.stages if id_ in record.stages and _makes(graph.stages[id_])]
    taken = {s.stage for node in makers for s in node.inputs.values() if isinstance(s, RefSource)}
    rows = (rows_of(record, [node.id])[:1] for node in makers if node.id not in taken)
    return [row for first in rows for row in first]


def _makes(node: StageNode) -> bool:
    """Say whether a stage makes something new of its inputs, rather than pushing or judging them."""
    return not node.converges and next(iter(node.outputs), _REPORT) != _REPORT


def _from_here(path: Path) -> str:
    near = os.path.relpath(path)
    return str(path) if near.startswith(os.pardir) else near
