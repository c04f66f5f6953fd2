"""A project's pipeline as the graph that a run would take."""

from __future__ import annotations

from deploy_runner.pipeline.compiled import compile_pipeline
from deploy_runner.types import Graph
from tests.conftest import Project

__all__ = ["compile_"]


def compile_(project: Project, **kwargs: object) -> Graph:
    """Compile pipeline.yaml in this process."""
    return compile_pipeline(project.folder / "pipeline.yaml", **kwargs)  # type: ignore[arg-type]
