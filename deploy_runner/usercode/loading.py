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
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from ..errors import StageError, closest
from . import installed
from .module_names import is_installed, module_name

__all__ = ["Closure", "defined_names", "import_closure", "install", "is_file", "load", "split"]


def split(code: str) -> tuple[str, str]:
    """Split `path/to/file.py:name` or `package.module:name` into the file or the module, and the name.

    The name may have dots, as `Net.small` has. Raises ValueError where it has neither form.
    """
    place, colon, name = code.rpartition(":")
    named = colon and all(part.isidentifier() for part in name.split("."))
    if named and all(part.isidentifier() for part in place.removesuffix(".py").split(".")):
        return place, name
    if not (named and place.endswith(".py")):
        raise ValueError(
            f"{code!r} is not of the form 'path/to/file.py:function' or 'package.module:function'"
        )
    if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
        raise ValueError(f"{place!r} is not a path inside the project")
    return place, name


def is_file(place: str) -> bool:
    """Say whether the first part of a code reference names a file of the project, not a module."""
    return place.endswith(".py")


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

    `entry` is a file of `root`, or a module that Python finds with `root` first on its path. Names of
    files are POSIX paths relative to `root`, or to the folder of the interpreter's path, sorted. Imports
    are read from the syntax tree, the ones inside functions too; they are looked up as Python does with
    `root` and the folder of `entry` first on its path. Raises FileNotFoundError, ModuleNotFoundError and
    SyntaxError (of the user's file).
    """
    folder = PurePosixPath(entry).parent if is_file(entry) else PurePosixPath()
    search = _Search(root, () if relative_only else (PurePosixPath(), folder))
    search.follow([entry] if is_file(entry) else search.module(entry))
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

    def module(self, dotted: str) -> list[str]:
        """Return the files of a module that is named, none where it was installed."""
        files = self._resolve("", None, dotted.split("."))
        top = dotted.partition(".")[0]
        if not files and not self.owners and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(name=dotted if (self._root / top).is_dir() else top)
        return files

    def follow(self, entries: Sequence[str]) -> None:
        """Find what files import, and what that imports."""
        pending = list(entries)
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            if name not in self.outside:
                self.found[name] = self._root / name
            path = self.outside[name] if name in self.outside else self.found[name]
            for base, dotted in _imports(name, path.read_bytes()):
                if base is not None or self._bases:
                    pending.extend(self._resolve(name, base, list(dotted)))

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


@lru_cache(maxsize=4096)
def _imports(name: str, source: bytes) -> tuple[tuple[PurePosixPath | None, tuple[str, ...]], ...]:
    """Return what a file imports: the folder that a relative import begins in, and the dotted name."""
    found: list[tuple[PurePosixPath | None, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(source, filename=name)):
        if isinstance(node, ast.Import):
            found += [(None, tuple(alias.name.split("."))) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ((PurePosixPath(name).parent / "x").parents[node.level - 1]) if node.level else None
            dotted = tuple(node.module.split(".")) if node.module else ()
            found += [(base, dotted), *((base, (*dotted, alias.name)) for alias in node.names)]
    return tuple(found)


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
    """Import what a code reference names, a project's from `files` alone, and return the object.

    `digests` are the SHA-256 of the files when the action key was computed; a file that has changed since
    is rejected. Raises StageError if the file or the name does not exist.
    """
    place, name = split(code)
    if is_file(place) and place not in files:
        raise StageError(f"{place} does not exist in the project", fix=closest(place, files))
    install(files, digests or {}, str(PurePosixPath(place).parent) if is_file(place) else ".")
    try:
        found: Any = importlib.import_module(module_name(place) if is_file(place) else place)
    except ModuleNotFoundError as error:
        if error.name != place:
            raise  # What it imports is missing.
        raise StageError(
            f"there is no module {place}", fix="install it, or write the path of a file: models/net.py:build"
        ) from None
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise StageError(f"{place} defines no {name!r}", fix=closest(part, dir(found))) from None
    return found


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
