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
from typing import Any, NamedTuple

from ..errors import StageError
from . import installed
from .module_names import is_installed, module_name

__all__ = ["Closure", "code_file", "defined_names", "import_closure", "install", "load", "split"]


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


class Closure(NamedTuple):
    """What a file imports, directly or not.

    `files` are the project's and those outside of it that were not installed, by name; `distributions`
    what was installed. `absent` are the places in the project where a module was looked for in vain:
    a file that appears there changes the closure.
    """

    files: dict[str, Path]
    distributions: tuple[str, ...]
    absent: tuple[Path, ...]


def import_closure(root: Path, entry: str, *, relative_only: bool = False) -> Closure:
    """Return `entry` and everything that it imports, of `root` by relative imports alone if asked for so.

    Names of files are POSIX paths relative to `root`, or to the folder of the interpreter's path, sorted.
    Imports are read from the syntax tree, the ones inside functions too; they are looked up as Python
    does with `root` and the folder of `entry` first on its path. Raises FileNotFoundError and
    SyntaxError (of the user's file).
    """
    search = _Search(root, () if relative_only else (PurePosixPath(), PurePosixPath(entry).parent))
    search.follow(entry)
    files = search.outside | search.found
    return Closure(dict(sorted(files.items())), tuple(sorted(search.owners)), tuple(sorted(search.absent)))


class _Search:
    def __init__(self, root: Path, bases: tuple[PurePosixPath, ...]) -> None:
        self.found: dict[str, Path] = {}
        self.outside: dict[str, Path] = {}
        self.owners: set[str] = set()
        self.absent: set[Path] = set()
        self._root = root
        self._bases = bases
        self._known: set[tuple[str, ...]] = set()

    def follow(self, entry: str) -> None:
        pending = [entry]
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            if name not in self.outside:
                self.found[name] = self._root / name
            tree = ast.parse((self.outside | self.found)[name].read_bytes(), filename=name)
            for base, dotted in _imports(PurePosixPath(name), tree):
                pending.extend(self._resolve(name, base, dotted))

    def _resolve(self, importer: str, base: PurePosixPath | None, dotted: list[str]) -> list[str]:
        """Return the files that an import reads: of the project, else of the interpreter's path."""
        if base is not None and importer in self.outside:
            dotted, base = [*base.parts, *dotted], None
        bases = self._bases if base is None else (base,)
        files = [name for place in bases for name in self._in_project(place, dotted)]
        if base is not None:
            files += self._packages(base)
        if files or base is not None or not dotted:
            return files
        return self._in_path(dotted)

    def _in_project(self, base: PurePosixPath, dotted: list[str]) -> Iterator[str]:
        for depth in range(1, len(dotted) + 1):
            stem = base.joinpath(*dotted[:depth])
            for candidate in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
                if (self._root / candidate).is_file():
                    yield candidate.as_posix()
                elif dotted[0] not in sys.stdlib_module_names and (self._root / stem.parent).is_dir():
                    self.absent.add(self._root / candidate)

    def _packages(self, folder: PurePosixPath) -> Iterator[str]:
        """Yield what Python runs before a relative import: the packages that its folder is in."""
        for place in (folder, *folder.parents)[:-1]:
            name = f"{place}/__init__.py"
            if (self._root / name).is_file():
                yield name
            else:
                self.absent.add(self._root / name)

    def _in_path(self, dotted: list[str]) -> list[str]:
        if tuple(dotted) not in self._known:
            self._known.add(tuple(dotted))
            origin = installed.origin_of(dotted)
            if origin is not None:
                self.owners.update(origin.distributions)
                self.outside |= {name: path for name, path in origin.files.items() if name not in self.found}
        stems = ["/".join(dotted[:depth]) for depth in range(1, len(dotted) + 1)]
        names = [f"{stem}{end}" for stem in stems for end in ("/__init__.py", ".py")]
        return [name for name in names if name in self.outside]


def _imports(file: PurePosixPath, tree: ast.AST) -> Iterator[tuple[PurePosixPath | None, list[str]]]:
    """Yield what a file imports: the folder that a relative import begins in, and the dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield None, alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            base = ((file.parent / "x").parents[node.level - 1]) if node.level else None
            dotted = node.module.split(".") if node.module else []
            yield base, dotted
            for alias in node.names:
                yield base, [*dotted, alias.name]


class _ProjectFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Import the files of one closure, and nothing else of the project."""

    def __init__(self, files: Mapping[str, Path], digests: Mapping[str, str], entry_dir: str) -> None:
        self._files = dict(files)
        self._digests = digests
        self._places = dict(_odd_places(files))
        self._bases = tuple(dict.fromkeys(("", f"{entry_dir}/" if entry_dir != "." else "")))

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        stem = self._places.get(fullname, fullname.replace(".", "/"))
        for base in self._bases:
            for name, package in ((f"{base}{stem}/__init__.py", True), (f"{base}{stem}.py", False)):
                if name in self._files:
                    spec = importlib.machinery.ModuleSpec(fullname, self, origin=name, is_package=package)
                    spec.has_location = True
                    if package:  # Its data and compiled modules lie beside it.
                        spec.submodule_search_locations = [str(self._files[name].parent)]
                    return spec
            here = any(name.startswith(f"{base}{stem}/") for name in self._files)
            if here and (fullname in self._places or not is_installed(fullname)):
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
            raise StageError(f"{name} changed during the run", fix="run again")
        return data

    def get_code(self, fullname: str) -> CodeType:
        name = self._name(fullname)
        code: CodeType = compile(self._read(name), name, "exec", dont_inherit=True)
        return code

    def get_resource_reader(self, fullname: str) -> Any:
        from importlib.readers import FileReader
        from types import SimpleNamespace

        return FileReader(SimpleNamespace(path=str(self._files[self._name(fullname)])))  # type: ignore[arg-type]

    def exec_module(self, module: ModuleType) -> None:
        name = self._name(module.__name__)
        module.__file__ = str(self._files[name])
        exec(self.get_code(module.__name__), module.__dict__)


def _odd_places(files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Yield module name → path without suffix of the files and folders that aren't named by their path."""
    for file in files:
        parts = file.removesuffix(".py").split("/")
        for depth in range(1, len(parts) + 1):
            stem = "/".join(parts[:depth])
            if (name := module_name(stem)) != stem.replace("/", "."):
                yield name, stem


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
    """Import the file of a code reference `path/to/file.py:name` from `files` and return the object.

    `digests` are the SHA-256 of the files when the action key was computed; a file that has changed since
    is refused. Raises StageError if the file or the name does not exist.
    """
    path, name = split(code)
    if path not in files:
        raise StageError(f"{path} does not exist in the project")
    entry_dir = str(PurePosixPath(path).parent)
    install(files, digests or {}, entry_dir)
    module = importlib.import_module(module_name(path))
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
