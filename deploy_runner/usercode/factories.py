"""Find what may build a model in the Python files of a project, without importing any of them."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["candidates", "modules_in", "place_of"]

_MOST_FILES = 400
_MOST_BYTES = 1 << 20
_MOST_DEEP = 4
_MOST = 6
_LEFT_OUT = frozenset(
    ("__pycache__", "build", "dist", "node_modules", "site-packages", "test", "tests", "venv")
)
_BUILDS = re.compile(r"(build|make|create|get|load)(_\w*)?(model|net|network|module)?|model|net")
"""Names of functions that return a model."""


class _Class(NamedTuple):
    """A class of a file: the names that it sets on itself, the classes that it is made from."""

    attributes: frozenset[str]
    bases: tuple[str, ...]
    has_forward: bool


def candidates(project: Path, weights: Iterable[str], *, named: str = "") -> list[str]:
    """Return the factories (`path/to/file.py:Name`) that weights of these names may fit, the likeliest first.

    `named` is the class that the checkpoint names, where it does. A class fits if it sets on itself what
    the names begin with, at whatever depth a training wrapper has put them; functions that are called as
    functions are that build models come last.
    """
    firsts = list(_beginnings(list(weights)))
    found: list[tuple[int, str]] = []
    for path in _files(project):
        tree = _parsed(path)
        place = path.relative_to(project).as_posix()
        classes = _classes(tree)
        for name, known in classes.items():
            own = _with_bases(name, classes)
            depth = next((at for at, begin in enumerate(firsts) if begin and begin <= own), None)
            if name == named:
                found.append((-1, f"{place}:{name}"))
            elif depth is not None and known.has_forward:
                found.append((depth, f"{place}:{name}"))
        found += [(len(firsts), f"{place}:{name}") for name in _builders(tree)]
    return [code for _, code in sorted(found, key=lambda pair: pair[0])[:_MOST]]


def place_of(project: Path, name: str) -> str | None:
    """Return where a class of this name is defined, as `path/to/file.py:Name`, if it is in one place."""
    found = [path for path in _files(project) if name in _classes(_parsed(path))]
    return f"{found[0].relative_to(project).as_posix()}:{name}" if len(found) == 1 else None


def modules_in(path: Path) -> list[str]:
    """Return the classes of a file that have a forward(), by name."""
    return [name for name, known in _classes(_parsed(path)).items() if known.has_forward]


def _beginnings(names: list[str]) -> Iterator[frozenset[str]]:
    """Yield the first parts of the names, then the second ones below the part that most names share."""
    for _ in range(3):
        yield frozenset(name.partition(".")[0] for name in names)
        below: dict[str, list[str]] = {}
        for name in names:
            first, dot, rest = name.partition(".")
            if dot:
                below.setdefault(first, []).append(rest)
        names = max(below.values(), key=len, default=[])


def _files(project: Path) -> Iterator[Path]:
    count = 0
    for folder, folders, files in os.walk(project):
        deep = len(Path(folder).relative_to(project).parts)
        folders[:] = sorted(
            f for f in folders if f[0] not in "._" and f not in _LEFT_OUT and deep < _MOST_DEEP
        )
        for name in sorted(files):
            path = Path(folder, name)
            parts = path.relative_to(project).with_suffix("").parts
            if name.endswith(".py") and all(part.replace("-", "_").isidentifier() for part in parts):
                count += 1
                if count > _MOST_FILES:
                    return
                if path.is_file() and path.stat().st_size <= _MOST_BYTES:
                    yield path


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return ast.Module([], [])


def _classes(tree: ast.Module) -> dict[str, _Class]:
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            functions = [f for f in node.body if isinstance(f, ast.FunctionDef)]
            found[node.name] = _Class(
                frozenset(_set_on_self(functions)),
                tuple(
                    base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
                    for base in node.bases
                ),
                any(function.name == "forward" for function in functions),
            )
    return found


def _set_on_self(functions: Iterable[ast.FunctionDef]) -> Iterator[str]:
    """Yield the names in `self.NAME = …` and `self.NAME: T = …`, and those that register_buffer is given."""
    for node in (node for function in functions for node in ast.walk(function)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            inner = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (t.attr for t in inner if isinstance(t, ast.Attribute) and _is_self(t.value))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_self(node.func.value):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _with_bases(name: str, classes: dict[str, _Class], deep: int = 0) -> frozenset[str]:
    """Return what a class and those of the same file that it is made from set on themselves."""
    known = classes.get(name)
    if known is None or deep > _MOST_DEEP:
        return frozenset()
    return known.attributes.union(*(_with_bases(base, classes, deep + 1) for base in known.bases))


def _builders(tree: ast.Module) -> list[str]:
    """Return the functions that may build a model without being told anything."""
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and _BUILDS.fullmatch(node.name)
        if len(node.args.args) - len(node.args.defaults) <= 0
    ]
