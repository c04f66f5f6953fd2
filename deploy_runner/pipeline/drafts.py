"""What all parts of a build stand on: the document, the stages on their way, the problems found so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Problem
from ..registry import Registry, StageType
from ..types import Mark, OutputSpec
from ..usercode import loading
from .loader import Node
from .overlay import Document
from .partners import Partners, Values
from .spec import StageSpec

__all__ = ["Draft", "Enough", "Ground", "Matrix", "Problems"]

Matrix = dict[str, Values]
"""The instances of a matrix by label, the part of their ids in brackets."""

_MOST = 100
_LINKS = 100
"""How many inputs and needs the stages may have together, for each one that a pipeline may have."""


class Enough(Exception):
    """So many problems were found that the rest can wait."""


class Problems(list[Problem]):
    """The problems of a file. Raises Enough once there are too many to read."""

    def __init__(self) -> None:
        super().__init__()
        self._distinct: set[Problem] = set()

    def append(self, problem: Problem) -> None:
        """Add a problem."""
        super().append(problem)
        self._distinct.add(problem)
        if len(self._distinct) >= _MOST or len(self) >= _MOST * _MOST:
            raise Enough

    def extend(self, problems: Iterable[Problem]) -> None:
        """Add several problems."""
        for problem in problems:
            self.append(problem)

    def __iadd__(self, problems: Iterable[Problem]) -> Problems:  # type: ignore[override,misc]
        """Add several problems."""
        self.extend(problems)
        return self


@dataclass(slots=True)
class Draft:
    """A stage on its way to a StageNode."""

    name: str
    node: Node
    spec: StageSpec
    type: StageType
    instances: dict[str, Values] = field(default_factory=dict)
    outputs: dict[str, OutputSpec] = field(default_factory=dict)
    partners: Partners | None = None


class Ground:
    """One pipeline's build. `broken` are the stages of which a problem was said: others don't repeat it."""

    def __init__(
        self, document: Document, path: Path, environ: Mapping[str, str], registry: Registry
    ) -> None:
        self.problems = Problems()
        self.env_names: set[str] = set()
        self.document = document
        self.root = document.root
        self.path = path
        self.folder = path.absolute().parent
        self.environ = environ
        self.registry = registry
        self.drafts: dict[str, Draft] = {}
        self.broken: set[str] = set()
        self.matrices: dict[str, Matrix | None] = {}
        self.max_instances = 0
        self._links = 0
        self.closures: dict[str, loading.Closure] = {}

    def say(self, mark: Mark, message: str, fix: str = "") -> None:
        """Note a problem at its place in the file."""
        self.problems.append(Problem(message, mark.file, mark.line, mark.column, fix))

    def link(self, draft: Draft, mark: Mark, count: int) -> None:
        """Count what an instance needs. Raises Enough where all needs of the pipeline are too many."""
        self._links += count
        limit = _LINKS * self.max_instances
        if self._links > limit:
            message = (
                f"{len(draft.instances)} instances of {draft.name!r} need {count} inputs and stages each, "
                f"and a pipeline may have {limit} of them in all"
            )
            fix = "give both stages the same matrix, so that instances are paired, or raise `max_instances`"
            self.say(mark, message, fix)
            raise Enough
