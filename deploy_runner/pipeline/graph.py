"""Stages → a directed acyclic graph: its order, its cycles, and the choice of targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import UsageError, closest
from ..types import Graph

__all__ = ["find_cycle", "select", "topological_order"]


def topological_order(upstream: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the nodes so that each comes after what it needs, else in the order given.

    Nodes that are part of a cycle, or need one, are left out. Iterative: 10,000 nodes are fine.

    >>> topological_order({"b": ["a"], "a": [], "c": ["b"]})
    ['a', 'b', 'c']
    """
    position = {node: index for index, node in enumerate(upstream)}
    missing = {node: len(set(needs)) for node, needs in upstream.items()}
    downstream: dict[str, list[str]] = {node: [] for node in upstream}
    for node, needs in upstream.items():
        for need in set(needs):
            downstream[need].append(node)
    import heapq

    ready = [position[node] for node, count in missing.items() if count == 0]
    heapq.heapify(ready)
    names = list(upstream)
    order: list[str] = []
    while ready:
        node = names[heapq.heappop(ready)]
        order.append(node)
        for follower in downstream[node]:
            missing[follower] -= 1
            if missing[follower] == 0:
                heapq.heappush(ready, position[follower])
    return order


def find_cycle(upstream: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the nodes of one cycle, the first again at the end; nothing if there is none.

    >>> find_cycle({"a": ["b"], "b": ["a"]})
    ['a', 'b', 'a']
    """
    inside = set(upstream) - set(topological_order(upstream))
    # Every node left over needs a node left over: following any such need must come round.
    node = next((name for name in upstream if name in inside), None)
    path: dict[str, None] = {}
    while node is not None and node not in path:
        path[node] = None
        node = next((need for need in upstream[node] if need in inside), None)
    names = list(path)
    return [*names[names.index(node) :], node] if node is not None else []


def select(graph: Graph, targets: Iterable[str] | None) -> tuple[str, ...]:
    """Return the ids of the targets and all they need, in order; of everything, if None.

    A target is a stage's name (all its matrix instances) or one instance's id. Raises
    UsageError, with the nearest spelling, for a name that is neither.
    """
    if not targets:
        return tuple(graph.stages)
    wanted: set[str] = set()
    pending: list[str] = []
    instances: dict[str, list[str]] = {}
    for node in graph.stages.values():
        instances.setdefault(node.base, []).append(node.id)
    for target in targets:
        found = instances.get(target) or ([target] if target in graph.stages else [])
        if not found:
            raise _unknown(target, graph)
        pending += found
    while pending:
        id_ = pending.pop()
        if id_ not in wanted:
            wanted.add(id_)
            pending += graph.stages[id_].upstream
    return tuple(id_ for id_ in graph.stages if id_ in wanted)


def _unknown(target: str, graph: Graph) -> UsageError:
    names = list(dict.fromkeys([n.base for n in graph.stages.values()] + list(graph.stages)))
    fix = closest(target, names) or f"the stages are {', '.join(names[:12])}"
    return UsageError(f"{graph.pipeline} has no stage {target!r}", fix=fix)
