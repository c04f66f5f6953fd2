"""References where none is read: in keys, and in the parts of a pipeline that are fixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import Problem
from ..types import Mark
from .loader import Node

__all__ = ["misplaced", "of_stage"]

_READ = frozenset({"vars", "target", "cache", "executor", "stages"})
_READ_OF_STAGE = frozenset({"matrix", "with", "inputs"})


def misplaced(root: Node) -> Iterator[Problem]:
    """Yield a problem for each reference that would stay as it is written."""
    yield from _keys(root.keys)
    for name, child in root.value.items():
        if name == "stages" and isinstance(child.value, dict):
            yield from _keys(child.keys)
            for stage, node in child.value.items():
                yield from of_stage(stage, node)
            continue
        yield from (problem for node in _nodes(child) for problem in _keys(node.keys))
        if name == "env" and isinstance(child.value, dict):
            for variable, node in child.value.items():
                fix = f"write `{variable}: null` for a variable that the environment must have"
                yield from _values(node, name, fix)
        elif name not in _READ:
            yield from _values(child, name, f"change it by an overlay, or by `--set {name}=…`")


def of_stage(name: str, stage: Node) -> Iterator[Problem]:
    """Yield a problem for each reference in a stage's keys, and in its fixed parts, such as `timeout`."""
    yield from (problem for node in _nodes(stage) for problem in _keys(node.keys))
    for key, child in stage.value.items() if isinstance(stage.value, dict) else ():
        if key not in _READ_OF_STAGE and not (key == "env" and isinstance(child.value, dict)):  # No list.
            yield from _values(child, key, f"change it by an overlay, or by `--set stages.{name}.{key}=…`")


def _keys(keys: Mapping[str, Mark]) -> Iterator[Problem]:
    for name, mark in keys.items():
        if "${{" in name:
            yield Problem("a key can't contain a reference", *mark, "only values can")


def _values(node: Node, key: str, fix: str) -> Iterator[Problem]:
    for child in _nodes(node):
        if isinstance(child.value, str) and "${{" in child.value:
            yield Problem(f"`{key}` takes no references", *child.mark, fix)


def _nodes(node: Node) -> Iterator[Node]:
    """Yield a node and all below it."""
    pending = [node]
    while pending:
        yield (node := pending.pop())
        if isinstance(node.value, (dict, list)):
            pending += node.value.values() if isinstance(node.value, dict) else node.value
