"""What the push stages say of the choices made for them, before anything runs."""

from __future__ import annotations

from ..types import Graph

__all__ = ["advice"]


def advice(graph: Graph) -> dict[str, list[str]]:
    """Return the sentences of each push stage that has any."""
    from ..registry import load_class

    found = {}
    for node in graph.stages.values():
        if node.converges:
            cls = load_class(node.module, node.class_name, node.stage_dir)
            found[node.id] = cls().advice(node.params, graph.target)
    return {stage: said for stage, said in found.items() if said}
