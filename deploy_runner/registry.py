"""`uses:` → stage class: the built-in ones, installed packages, and the project's `./stages`.

The path is the type: `onnx.export` is `onnx/export.py`, and one lookup imports one file; `onnx/export.md`
is its example, what else lies in a folder are helpers. Installed packages join by the entry-point group
`deploy_runner.stages`, whose values name packages of stage files. In them and in a project's `./stages` a
file at the top may also define types of any name.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from .errors import Problem, SpecError
from .sdk import Stage, StageInputs, StageOutputs, StageParams
from .types import SourceFile
from .usercode.advice import missing_module
from .usercode.loading import Closure, import_closure

__all__ = ["GROUP", "Registry", "StageType", "is_projects", "load_class", "shared_example"]

GROUP = "deploy_runner.stages"
_BUILTIN = "deploy_runner.stages"
_PROJECT = "deploy_runner_project_stages_"
_USES = re.compile(r"""^\s+uses(?:: *[\w\[\]]+)? *= *["']([\w.-]+)["']""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class StageType:
    """A stage class, where it lives, and the files that its behaviour depends on."""

    cls: type[Stage]
    module: str
    stage_dir: Path
    implementation: tuple[SourceFile, ...]
    origin: str
    packages: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Return the file that defines the class."""
        return Path(str(sys.modules[self.module].__file__))

    @property
    def summary(self) -> str:
        """Return the first line of the class's docstring."""
        return (self.cls.__doc__ or "").strip().partition("\n")[0]

    @property
    def example(self) -> str:
        """Return the example, Markdown beside the class's file: `onnx/export.md`; empty if there is none."""
        file = self.stage_dir / f"{self.cls.uses.replace('.', '/')}.md"
        return file.read_text("utf-8") if file.is_file() else ""


class Registry:
    """The stage types that a project can use."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: dict[str, StageType] = {}
        self._project_read = self._installed_read = self._all_read = False
        self.absent: set[Path] = set()
        builtin = importlib.import_module(_BUILTIN)
        self._builtin_dir = Path(str(builtin.__file__)).parent
        local = root / "stages"
        same = local.is_dir() and local.resolve() == self._builtin_dir.resolve()
        self.project_dir: Path | None = local if local.is_dir() and not same else None

    def get(self, uses: str) -> StageType | None:
        """Return the stage type of this name, or None. Raises SpecError for a broken file."""
        self._read_project()
        if uses not in self._found:
            file = self._builtin_file(uses)
            if _is_name(uses) and file.is_file():
                self._add(_BUILTIN, self._builtin_dir, file, "built-in")
        if uses not in self._found:
            self._read_installed()
        return self._found.get(uses)

    def _builtin_file(self, uses: str) -> Path:
        return self._builtin_dir / f"{uses.replace('.', '/')}.py"

    def names(self) -> list[str]:
        """Return the name of every stage type, sorted."""
        return sorted(t.cls.uses for t in self.all())

    def all(self) -> list[StageType]:
        """Return every stage type, by name."""
        self._read_project()
        if not self._all_read:
            for file in _stage_files(self._builtin_dir, anywhere=False):
                self._add(_BUILTIN, self._builtin_dir, file, "built-in")
            self._all_read = True
        self._read_installed()
        return [self._found[uses] for uses in sorted(self._found)]

    def _read_project(self) -> None:
        if self._project_read or self.project_dir is None:
            return
        self._project_read = True
        package = _project_package(self.project_dir)
        for file in _stage_files(self.project_dir):
            self._add(package, self.project_dir, file, "project")

    def _read_installed(self) -> None:
        if self._installed_read:
            return
        from importlib.metadata import entry_points

        for entry in entry_points(group=GROUP):
            if entry.value == _BUILTIN:
                continue
            module = importlib.import_module(entry.value)
            origin = entry.dist.name if entry.dist else entry.value
            folder = Path(str(module.__file__)).parent
            for file in _stage_files(folder):
                self._add(entry.value, folder, file, origin)
        self._installed_read = True

    def _add(self, package: str, folder: Path, file: Path, origin: str) -> None:
        module = ".".join((package, *file.relative_to(folder).with_suffix("").parts))
        for cls in _stage_classes(_import(module, folder, file), file):
            known = self._found.get(cls.uses)
            other = known.file if known is not None else self._builtin_file(cls.uses)
            if other.is_file() and other.resolve() != file.resolve():
                if other.read_bytes() == file.read_bytes():
                    continue
                message = f"the stage type {cls.uses!r} is already defined in {self._shown(other)}"
                raise _broken(file, _line_of(cls), message, "rename yours")
            if known is None:
                closure = _closure(folder, file, origin)
                files = tuple(SourceFile(n, str(p)) for n, p in closure.files.items())
                # A built-in stage type says itself which packages its outputs depend on.
                packages = () if origin == "built-in" else closure.distributions
                self.absent.update(closure.absent)
                self._found[cls.uses] = StageType(cls, module, folder, files, origin, packages)

    def _shown(self, file: Path) -> str:
        """Return a stage file's path in the folder of its kind."""
        folders = (self._builtin_dir, *([self.project_dir] if self.project_dir else []))
        found = next((folder for folder in folders if file.is_relative_to(folder)), file.parent)
        return file.relative_to(found).as_posix()


def _closure(folder: Path, file: Path, origin: str) -> Closure:
    if origin != "built-in":
        return import_closure(folder, file.relative_to(folder).as_posix())
    engine = folder.parent
    return import_closure(engine, file.relative_to(engine).as_posix(), relative_only=True)


def shared_example() -> str:
    """Return the text with the files that the examples of several built-in stage types use."""
    folder = Path(str(importlib.import_module(_BUILTIN).__file__)).parent
    return (folder / "examples.md").read_text("utf-8")


def is_projects(module: str) -> bool:
    """Say whether a stage type's module is a file of the project, not of an installed package."""
    return module.startswith(_PROJECT)


def load_class(module: str, class_name: str, stage_dir: str) -> type[Stage]:
    """Import one stage class: what a worker does with what the registry found.

    The project's folder may be another than where it was found: on a node of a cluster it is a copy.
    """
    if is_projects(module):
        _make_package(module.partition(".")[0], Path(stage_dir))
    cls: type[Stage] = getattr(importlib.import_module(module), class_name)
    return cls


def _project_package(folder: Path) -> str:
    """Make the project's folder importable as a package of its own, and return its name."""
    return _make_package(_PROJECT + sha256(str(folder.resolve()).encode()).hexdigest()[:8], folder)


def _make_package(name: str, folder: Path) -> str:
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _is_name(uses: str) -> bool:
    return all(part.isidentifier() and not part.startswith("_") for part in uses.split("."))


def _stage_files(folder: Path, *, anywhere: bool = True) -> Iterator[Path]:
    """Yield the files that define stage types: those of the type's path, and any at the top if `anywhere`.

    Raises SpecError for a type in a folder whose name is not that of its path.
    """
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        if any(part.startswith(("_", ".")) for part in parts):
            continue
        if anywhere and len(parts) == 1:
            yield file
            continue
        text = file.read_text("utf-8", errors="replace")
        types = list(_USES.finditer(text))
        for found in types:
            if found[1] != ".".join(parts):
                line = text.count("\n", 0, found.start(1)) + 1
                message = f"the stage type {found[1]!r} is defined in the file of {'.'.join(parts)!r}"
                raise _broken(file, line, message, f"move it to stages/{found[1].replace('.', '/')}.py")
        if types:
            yield file


def _import(name: str, folder: Path, file: Path) -> ModuleType:
    if name.startswith(_PROJECT):
        # The file may have changed since another pipeline of this process read it.
        sys.modules.pop(name, None)
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        raise _broken(Path(error.filename or file), error.lineno or 1, str(error.msg)) from None
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line = (frames[-1].lineno if frames else 1) or 1
        said = f"the file can't be imported: {type(error).__name__}: {error}"
        fix = ""
        if isinstance(error, ModuleNotFoundError) and str(error.name).startswith(_PROJECT):
            said = f"there is no stages/{'/'.join(str(error.name).split('.')[1:])}.py, which it imports"
        elif isinstance(error, ModuleNotFoundError):
            said, fix = missing_module(error, project=str(folder.parent), folder=str(folder), extra="")
        raise _broken(file, line, said, fix) from None


def _stage_classes(module: ModuleType, file: Path) -> Iterator[type[Stage]]:
    for cls in vars(module).values():
        if not (inspect.isclass(cls) and issubclass(cls, Stage) and cls.__module__ == module.__name__):
            continue
        if "uses" not in vars(cls):
            if cls.__name__.startswith("_"):
                continue
            message = f"the stage class {cls.__name__} has no name"
            raise _broken(file, _line_of(cls), message, 'add: uses = "group.name"')
        for part, base in (
            ("Params", StageParams),
            ("Inputs", StageInputs),
            ("Outputs", StageOutputs),
        ):
            if not issubclass(getattr(cls, part), base):
                message = f"{cls.__name__}.{part} is not a {base.__name__}"
                raise _broken(file, _line_of(cls), message, f"class {part}({base.__name__}): …")
        if not (cls.__doc__ or "").strip():
            raise _broken(file, _line_of(cls), f"the stage class {cls.__name__} has no docstring")
        yield cls


def _line_of(cls: type[Stage]) -> int:
    try:
        return inspect.getsourcelines(cls)[1]
    except OSError:
        return 1


def _broken(file: Path, line: int, message: str, fix: str = "") -> SpecError:
    try:
        shown = file.resolve().relative_to(Path.cwd())
    except ValueError:
        shown = file
    return SpecError([Problem(message, str(shown), line, 1, fix)])
