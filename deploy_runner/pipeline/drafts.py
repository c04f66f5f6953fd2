"""What all parts of a build stand on: the document, the stages on their way, the problems found so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Problem
from ..registry import Registry, StageType
from ..types import Mark, OutputSpec, Scalar
from ..usercode import loading
from .loader import Node
from .overlay import Document
from .spec import StageSpec

__all__ = ["Draft", "Ground"]


@dataclass(slots=True)
class Draft:
    """A stage on its way to a StageNode."""

    name: str
    node: Node
    spec: StageSpec
    type: StageType
    axes: dict[str, list[Scalar]] = field(default_factory=dict)
    instances: dict[str, dict[str, Scalar]] = field(default_factory=dict)
    outputs: dict[str, OutputSpec] = field(default_factory=dict)


class Ground:
    """One pipeline's build. `broken` are the stages of which a problem was said: others don't repeat it."""

    def __init__(
        self, document: Document, path: Path, environ: Mapping[str, str], registry: Registry
    ) -> None:
        self.problems: list[Problem] = []
        self.env_names: set[str] = set()
        self.document = document
        self.root = document.root
        self.path = path
        self.folder = path.absolute().parent
        self.environ = environ
        self.registry = registry
        self.drafts: dict[str, Draft] = {}
        self.broken: set[str] = set()
        self.closures: dict[str, loading.Closure] = {}

    def say(self, mark: Mark, message: str, fix: str = "") -> None:
        """Note a problem at its place in the file."""
        self.problems.append(Problem(message, mark.file, mark.line, mark.column, fix))
