"""The outline of a run: its stages and what each reads, written as it starts its first stage.

A run record says how stages ended, not which needs which, and the pipeline may have changed or be gone by
the time that somebody looks at the run. A run in which everything is a hit has none: that of the run before
holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..pipeline.graph import select
from ..pipeline.identity import Files
from ..store.actions import Records
from ..store.files import read_or_none, write_atomic
from ..types import Graph, Json, RefSource, StageNode

__all__ = ["OUTLINE", "outline_of", "read_outline", "write_outline"]

OUTLINE = "outline.json"
_KIND = "outline"


def outline_of(graph: Graph, targets: Sequence[str], files: Files, started: str) -> dict[str, Json]:
    """Return the stages that a run was asked for, in order, as JSON."""
    return {
        "schema": 1,
        "name": graph.name,
        "pipeline": graph.pipeline,
        "files": list(files),
        "target": str(graph.target.get("name", "dry-run")),
        "live": graph.live,
        "started": started,
        "stages": {id_: _stage(graph.stages[id_]) for id_ in select(graph, targets)},
    }


def _stage(node: StageNode) -> dict[str, Json]:
    """Return what a stage is; an input is [stage, output], or the path of a file of the project."""
    return {
        "uses": node.uses,
        "base": node.base,
        "matrix": dict(node.matrix),
        "push": node.converges,
        "needs": list(node.upstream),
        "inputs": {
            name: [source.stage, source.output] if isinstance(source, RefSource) else source.path
            for name, source in node.inputs.items()
        },
        "outputs": {name: output.path for name, output in node.outputs.items()},
    }


def write_outline(home: Path, folder: Path, outline: dict[str, Json]) -> None:
    """Store the outline of a run in its folder, signed. Raises StoreError where that fails."""
    body = json.dumps(outline, ensure_ascii=False, separators=(",", ":")).encode()
    signed = Records(home).seal.signed(body, _KIND, folder.name)
    write_atomic(folder / OUTLINE, signed, tmp=home / "tmp", durable=False)


def read_outline(records: Records, folder: Path) -> Json:
    """Return the outline of a run, None where there is none that its store has signed."""
    body = records.seal.signed_body(read_or_none(folder / OUTLINE) or b"", _KIND, folder.name)
    try:
        value: Json = json.loads(body) if body is not None else None
    except (ValueError, RecursionError):
        return None
    return value
