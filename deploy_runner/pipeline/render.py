"""Draw a graph as text, Mermaid or Graphviz dot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..types import Graph

__all__ = ["render"]


def render(graph: Graph, form: Literal["text", "mermaid", "dot"]) -> str:
    """Return the drawing; every form lists each stage with its type, and each edge."""
    drawers = {"text": _text, "mermaid": _mermaid, "dot": _dot}
    return "\n".join(drawers[form](graph))


def _text(graph: Graph) -> Iterator[str]:
    width = max((len(id_) for id_ in graph.stages), default=0)
    for node in graph.stages.values():
        needs = f"  ← {', '.join(node.upstream)}" if node.upstream else ""
        yield f"{node.id:<{width}}  {node.uses}{needs}"


def _mermaid(graph: Graph) -> Iterator[str]:
    names = {id_: f"s{index}" for index, id_ in enumerate(graph.stages)}
    yield "graph TD"
    for node in graph.stages.values():
        yield f'    {names[node.id]}["{node.id}<br><small>{node.uses}</small>"]'
    for node in graph.stages.values():
        for need in node.upstream:
            yield f"    {names[need]} --> {names[node.id]}"


def _dot(graph: Graph) -> Iterator[str]:
    yield f"digraph {_quoted(graph.name)} {{"
    yield "    rankdir=LR; node [shape=box];"
    for node in graph.stages.values():
        yield f"    {_quoted(node.id)} [tooltip={_quoted(node.uses)}];"
    for node in graph.stages.values():
        for need in node.upstream:
            yield f"    {_quoted(need)} -> {_quoted(node.id)};"
    yield "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
