"""Name the tensors of what is nested: dicts, lists and classes with fields.

A *path* leads to one tensor: the keys, fields and indices on the way. A *tree* has names in the place of
the tensors. `flat_names` has the one rule for inputs and outputs: a tensor is called as its key or field,
with the indices below it (`features_0`); where two would be called alike, as their whole paths
(`left_mask`, `right_mask`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy_runner.sdk import StageError

__all__ = ["Path", "Tree", "flat_names", "leaves", "shown", "tree_of"]

Path = tuple[str | int, ...]
Tree = str | list["Tree"] | dict[str, "Tree"]


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield path and content of whatever in a tree is neither a list nor a mapping."""
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from leaves(child, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for index, child in enumerate(tree):
            yield from leaves(child, (*path, index))
    else:
        yield path, tree


def tree_of(paths: Mapping[str, Path]) -> dict[str, Tree]:
    """Return the tree whose leaves are the names, at their paths; mappings and lists in their order."""
    root: dict[str | int, Any] = {}
    for name, path in paths.items():
        place = root
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = name
    return {str(key): _listed(child) for key, child in root.items()}


def _listed(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    children = {key: _listed(child) for key, child in tree.items()}
    return list(children.values()) if all(isinstance(key, int) for key in children) else children


def flat_names(paths: Sequence[Path], *, of: str = "") -> list[str]:
    """Return a name for each path; `of` stands where there is no key or field in it.

    Raises StageError where two have the same name all the same.
    """
    short = [_joined(path[_last_word(path) :], of) for path in paths]
    often = Counter(short)
    names = [name if often[name] == 1 else _joined(path, of) for name, path in zip(short, paths, strict=True)]
    for name, count in Counter(names).items():
        if count > 1:
            same = " and ".join(
                shown(path) for path, found in zip(paths, names, strict=True) if found == name
            )
            raise StageError(f"{same} would both be called {name!r}", fix="rename a key of one of them")
    return names


def _is_index(part: str | int) -> bool:
    """Say whether a part of a path is a number, also where it is a mapping's key."""
    return isinstance(part, int) or part.isdecimal()


def _last_word(path: Path) -> int:
    return max((place for place, part in enumerate(path) if not _is_index(part)), default=0)


def _joined(path: Path, of: str) -> str:
    parts = [str(part) for part in path]
    return "_".join([of, *parts] if of and (not path or _is_index(path[0])) else parts)


def shown(path: Path) -> str:
    """Return a path as errors name it: `batch.features[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
