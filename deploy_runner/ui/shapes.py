"""What the pages take of a run's files: a record, an outline, a line of its log.

The store has signed the first two, but perhaps by another version of deploy-runner; the log isn't signed.
So each is checked against its shape here, and what doesn't have it is listed as unreadable, never shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from ..types import Json

__all__ = [
    "ArtifactShape",
    "Head",
    "LogLine",
    "Outline",
    "OutlineStage",
    "Record",
    "RecordStage",
    "fitted",
    "flat_figures",
    "line_of",
]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Head(_Shape):
    """What a list of runs says of each, without its stages."""

    name: str
    files: tuple[str, ...]
    target: str
    live: bool = False
    started: str
    seconds: float
    exit_code: int


class ArtifactShape(_Shape):
    """An artifact in a record."""

    kind: Literal["file", "folder"]
    size: int
    digest: str


class RecordStage(_Shape):
    """A stage in a record."""

    state: str
    uses: str = ""
    after: tuple[str, ...] = ()
    converges: bool = False
    key: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = {}
    artifacts: dict[str, ArtifactShape] = {}
    reason: str = ""
    error: str = ""


class Record(Head):
    """A run record."""

    id: str
    pipeline: str
    stages: dict[str, RecordStage]


class OutlineStage(_Shape):
    """A stage in an outline; an input is (stage, output), or the path of a file of the project."""

    uses: str = ""
    base: str = ""
    matrix: dict[str, str | int | float | bool | None] = {}
    push: bool = False
    needs: tuple[str, ...] = ()
    inputs: dict[str, tuple[str, str] | str] = {}
    outputs: dict[str, str] = {}


class Outline(_Shape):
    """The stages of a run, as it starts."""

    name: str
    pipeline: str
    files: tuple[str, ...]
    target: str
    live: bool = False
    started: str
    stages: dict[str, OutlineStage]


class LogLine(_Shape):
    """A line of `log.jsonl`."""

    time: float
    kind: str
    stage: str = ""
    stages: tuple[str, ...] = ()
    text: str = ""
    state: str = ""
    reason: str = ""
    error: str = ""
    seconds: float = 0.0


_Fitted = TypeVar("_Fitted", bound=_Shape)


def fitted(shape: type[_Fitted], value: Json) -> _Fitted | None:
    """Return a value in its shape, or None where it has another."""
    try:
        if isinstance(value, dict) and value.get("schema", 1) == 1:
            return shape.model_validate(value)
    except ValidationError:
        pass
    return None


def line_of(text: bytes) -> LogLine | None:
    """Return a line of a log, or None for what is no such line."""
    try:
        return fitted(LogLine, from_json(text))
    except ValueError:
        return None


def flat_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that are one value each; those of a table are named `table.row.column`."""
    return dict(_flat(figures, ""))


def _flat(figures: Mapping[str, Any], prefix: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, Mapping) and depth < 4:
            yield from _flat(value, f"{prefix}{name}.", depth + 1)
        elif isinstance(value, (bool, int, float, str)):
            yield f"{prefix}{name}", value
