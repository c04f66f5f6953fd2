"""The record of a run → what it made, in one sentence: all that a run with nothing to do has to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..engine.runs import RunRecord
from ..errors import counted
from ..types import Json
from .lines import Entries, listed, size

__all__ = ["NAMED", "Result", "made", "results"]

NAMED = 2
"""So many results, or pushes, are named; the others are counted."""
_MADE = ("ran", "hit", "healed", "converged")


class Result(NamedTuple):
    """The first output of a stage that no other stage takes further; pushes and checks don't."""

    stage: str
    output: str
    bytes_: int

    @property
    def name(self) -> str:
        """Return the name by which `get` takes it."""
        return f"{self.stage}.{self.output}"


def results(stages: Entries) -> list[Result]:
    """Return what people came for, in the order of the stages."""
    makers = {id_: entry for id_, entry in stages.items() if _makes(entry)}
    taken = {before for entry in makers.values() for before in listed(entry.get("after"))}
    found = []
    for id_, entry in makers.items():
        artifacts = entry.get("artifacts")
        if id_ in taken or not isinstance(artifacts, dict):
            continue
        for output, artifact in list(artifacts.items())[:1]:
            bytes_ = artifact.get("size") if isinstance(artifact, dict) else None
            found.append(Result(id_, output, bytes_ if isinstance(bytes_, int) else 0))
    return found


def _makes(entry: Mapping[str, Json]) -> bool:
    """Say whether a stage made something new of its inputs, rather than pushed or judged them."""
    outputs = entry.get("outputs")
    first = next(iter(outputs), "report") if isinstance(outputs, dict) else "report"
    known = "after" in entry  # Records of version 0.1.0 don't say what a stage takes.
    return known and entry["state"] in _MADE and not entry.get("converges") and first != "report"


def made(record: RunRecord, found: Sequence[Result]) -> str:
    """Return the sentence: what was built, for which target, and who pushed it; or how much is missing."""
    stages, data = record.stages, record.data
    count = {state: int(str(data.get(state, 0))) for state in ("failed", "interrupted", "skipped")}
    name, target = data["name"], data["target"]
    if count["failed"] or count["interrupted"]:
        parts = [f"{count[state]} {state}" for state in count if count[state]]
        return f"{name} for {target} is incomplete: of {counted(len(stages), 'stage')} {', '.join(parts)}."
    pushes = [id_ for id_, entry in stages.items() if entry.get("converges")]
    unchanged = bool(stages) and all(entry["state"] == "hit" for entry in stages.values())
    said = f"{name} for {target} {'is unchanged' if unchanged else 'is built'}"
    shown = [f"{result.name} ({size(result.bytes_)})" for result in found]
    said += f": {_some(shown[::-1])}" if shown else ""
    said += f"; pushed by {_some(pushes)}" if pushes else ""
    return f"{said}."


def _some(names: Sequence[str]) -> str:
    shown = names[:NAMED]
    if left := len(names) - len(shown):
        return ", ".join(shown) + f" and {left} more"
    return " and ".join(shown)
