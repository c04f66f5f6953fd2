"""Find, hash-check and import the user's code by its path relative to the project.

A module is compiled under its relative path, so that no absolute path enters TorchScript debug
data or ONNX metadata, and only files of the import closure can be imported from the project.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import CodeType, ModuleType
from typing import Any

from .errors import StageError

__all__ = ["code_file", "defined_names", "import_closure", "install", "load", "split"]


def split(code: str) -> tuple[str, str]:
    """Split `path/to/file.py:name` into its path and its name.

    Raises ValueError where it does not have that form.
    """
    path, colon, name = code.rpartition(":")
    parts = PurePosixPath(path).parts
    if not (colon and path.endswith(".py") and name.isidentifier()):
        raise ValueError(f"{code!r} is not of the form 'path/to/file.py:function'")
    if PurePosixPath(path).is_absolute() or ".." in parts:
        raise ValueError(f"{path!r} is not a path inside the project")
    return path, name


def code_file(code: str) -> str:
    """Return the file part of a code reference."""
    return split(code)[0]


def import_closure(root: Path, entry: str) -> dict[str, Path]:
    """Return `entry` and every project file that it imports, directly or not.

    Keys are POSIX paths relative to `root`, sorted. Imports are read from the syntax tree, the
    ones inside functions too; they are looked up as Python does with `root` and the folder of
    `entry` on its path. Raises FileNotFoundError and SyntaxError (of the user's file).
    """
    found: dict[str, Path] = {}
    entry_dir = PurePosixPath(entry).parent
    pending = [entry]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        path = root / name
        tree = ast.parse(path.read_bytes(), filename=name)
        found[name] = path
        pending.extend(_imported_files(root, entry_dir, PurePosixPath(name), tree))
    return dict(sorted(found.items()))


def _imported_files(
    root: Path, entry_dir: PurePosixPath, file: PurePosixPath, tree: ast.AST
) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _resolve(root, (PurePosixPath(), entry_dir), alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            bases: tuple[PurePosixPath, ...] = (PurePosixPath(), entry_dir)
            if node.level:
                bases = ((file.parent / "x").parents[node.level - 1],)
            dotted = node.module.split(".") if node.module else []
            yield from _resolve(root, bases, dotted)
            for alias in node.names:
                yield from _resolve(root, bases, [*dotted, alias.name])


def _resolve(root: Path, bases: tuple[PurePosixPath, ...], dotted: list[str]) -> Iterator[str]:
    for base in bases:
        for depth in range(1, len(dotted) + 1):
            stem = base.joinpath(*dotted[:depth])
            for candidate in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
                if (root / candidate).is_file():
                    yield candidate.as_posix()


class _ProjectFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Import the files of one closure, and nothing else of the project."""

    def __init__(self, files: Mapping[str, Path], digests: Mapping[str, str], entry_dir: str) -> None:
        self._files = dict(files)
        self._digests = digests
        self._bases = tuple(dict.fromkeys(("", f"{entry_dir}/" if entry_dir != "." else "")))

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        stem = fullname.replace(".", "/")
        for base in self._bases:
            for name, package in ((f"{base}{stem}/__init__.py", True), (f"{base}{stem}.py", False)):
                if name in self._files:
                    spec = importlib.machinery.ModuleSpec(fullname, self, origin=name, is_package=package)
                    spec.has_location = True
                    return spec
            if any(name.startswith(f"{base}{stem}/") for name in self._files):
                spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
                spec.submodule_search_locations = []
                return spec
        return None

    def _name(self, fullname: str) -> str:
        spec = self.find_spec(fullname)
        if spec is None or spec.origin is None:
            raise ImportError(f"{fullname} is not a module of this project", name=fullname)
        return spec.origin

    def get_source(self, fullname: str) -> str:
        return self._read(self._name(fullname)).decode("utf-8")

    def _read(self, name: str) -> bytes:
        data = self._files[name].read_bytes()
        expected = self._digests.get(name)
        if expected is not None and hashlib.sha256(data).hexdigest() != expected:
            raise StageError(f"{name} changed while the run was going on", fix="run again")
        return data

    def get_code(self, fullname: str) -> CodeType:
        name = self._name(fullname)
        code: CodeType = compile(self._read(name), name, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        name = self._name(module.__name__)
        module.__file__ = str(self._files[name])
        exec(self.get_code(module.__name__), module.__dict__)


def install(files: Mapping[str, Path], digests: Mapping[str, str], entry_dir: str) -> None:
    """Make the closure's files importable in this process, before everything else.

    A module of the same name that another closure brought is forgotten.
    """
    paths = {str(path) for path in files.values()}
    for name, module in list(sys.modules.items()):
        finder = getattr(getattr(module, "__spec__", None), "loader", None)
        if isinstance(finder, _ProjectFinder) and module.__file__ not in paths:
            origin = module.__spec__.origin if module.__spec__ else None
            if origin in files:
                del sys.modules[name]
    sys.meta_path.insert(0, _ProjectFinder(files, digests, entry_dir))


def load(code: str, files: Mapping[str, Path], digests: Mapping[str, str] | None = None) -> Any:
    """Import a code reference's file out of `files` and return the object it names.

    `digests` are the SHA-256 that the files had when the action key was made: another content
    is refused. Raises StageError where the file or the name does not exist.
    """
    path, name = split(code)
    if path not in files:
        raise StageError(f"{path} does not exist in the project")
    entry_dir = str(PurePosixPath(path).parent)
    install(files, digests or {}, entry_dir)
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    try:
        return getattr(module, name)
    except AttributeError:
        raise StageError(f"{path} defines no {name!r}") from None


def defined_names(path: Path) -> list[str]:
    """Return the names that a file defines or imports at its top level."""
    names: list[str] = []
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names += [(a.asname or a.name).partition(".")[0] for a in node.names]
    return names
