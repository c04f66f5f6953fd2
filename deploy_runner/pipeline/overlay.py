"""Merge a pipeline, its overlays and `--set` expressions into one tree, and keep the origins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Problem, SpecError, UsageError
from ..types import Mark
from .identity import DEFAULT_OVERLAY
from .loader import Node, load_yaml, read_text

__all__ = ["DEFAULT_OVERLAY", "Document", "load_document", "merge"]

_MAX_PATH = 2000
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Document:
    """The merged tree, the files it came from, the origin of every dotted path, the pipeline's own vars."""

    root: Node
    files: tuple[Path, ...]
    origins: dict[str, str]
    variables: frozenset[str] = frozenset()


def load_document(path: Path, overlays: Sequence[Path], sets: Sequence[str]) -> Document:
    """Read the pipeline, merge the overlays over it by key, then apply `--set`.

    Without overlays `configs/dry-run.yaml` beside the pipeline is used, if there is one.
    Raises UsageError for a missing file, SpecError for one that can't be read as YAML.
    """
    text = read_text(path, str(path), missing="write one with `deploy-runner init CHECKPOINT`")
    root = _mapping(load_yaml(text, str(path)))
    own = root.value.get("vars")
    variables = frozenset(own.value) if own is not None and isinstance(own.value, dict) else frozenset()
    default = path.parent / DEFAULT_OVERLAY
    chosen = list(overlays) or ([default] if default.is_file() else [])
    for overlay in chosen:
        root = merge(root, _mapping(load_yaml(read_text(overlay, str(overlay)), str(overlay))))
    for expression in sets:
        root = merge(root, _set_tree(expression))
    origins: dict[str, str] = {}
    _collect_origins(root, "", origins)
    return Document(root, (path, *chosen), origins, variables)


def _mapping(node: Node) -> Node:
    if isinstance(node.value, dict):
        return node
    mark = node.mark
    message = "a pipeline is a mapping with `version`, `name` and `stages`"
    raise SpecError([Problem(message, mark.file, mark.line, mark.column)])


def merge(base: Node, over: Node) -> Node:
    """Return `base` with `over` laid on it: mappings merge, the rest replaces, null removes."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    value, keys = dict(base.value), dict(base.keys)
    for name, child in over.value.items():
        if child.value is None:
            value.pop(name, None)
            continue
        value[name] = merge(value[name], child) if name in value else child
        keys[name] = keys[name] if isinstance(child.value, dict) and name in keys else over.keys[name]
    return Node(value, base.mark, keys)


def _set_tree(expression: str) -> Node:
    path, equals, text = expression.partition("=")
    names = path.split(".")
    if not equals or not all(names):
        raise UsageError(f"--set {expression!r} is not PATH=VALUE", fix="e.g. --set vars.opset=20")
    if len(names) > _MAX_DEPTH:
        raise UsageError(f"--set {names[0]}.…: the path has more than {_MAX_DEPTH} names")
    source = f"--set {expression}"
    mark = Mark(source, 0, 0)
    try:
        node = load_yaml(text, source) if text.strip() else Node("", mark)
    except SpecError as error:
        said = error.problems[0].message
        raise UsageError(f"--set {path}: {said}", fix=f"quote the string: --set '{path}=\"…\"'") from None
    _relabel(node, mark)
    for name in reversed(names):
        node = Node({name: node}, mark, {name: mark})
    return node


def _relabel(node: Node, mark: Mark) -> None:
    node.mark = mark
    node.keys = dict.fromkeys(node.keys, mark)
    children = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(node.value, (dict, list)):
        for child in children:
            _relabel(child, mark)


def _collect_origins(node: Node, path: str, origins: dict[str, str]) -> None:
    if len(path) > _MAX_PATH:
        message = f"the keys from the top down to here are longer than {_MAX_PATH} characters together"
        raise SpecError([Problem(message, node.mark.file, node.mark.line, node.mark.column)])
    if isinstance(node.value, dict):
        for name, child in node.value.items():
            _collect_origins(child, f"{path}.{name}" if path else name, origins)
    elif path:
        origins[path] = str(node.mark) if node.mark.line else node.mark.file
