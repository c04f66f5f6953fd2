"""Catch what a stage reads, lists or looks for without having declared it.

A read of a file of the project (or of the user's home) that is no declared input makes the
cache lie: the key doesn't know of it. So does the answer that such a file exists, or what a folder
lists. The guard remembers each, since the stage's code may swallow a refusal, and refuses it where the
process sees the file at all; the runner, which sees the whole project, judges what was remembered.

Reads and listings are Python's audit events. Looking for a file (`os.stat`, `os.access`, …, and what is
made of them, as `Path.exists`) raises none: `lookups` stands before these functions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping
from types import FrameType
from typing import Literal, NamedTuple

from .lookups import stand_before
from .writes import writes

__all__ = ["ReadGuard", "Scope", "Verb"]

Verb = Literal["read", "listed", "looked for"]
_EVENTS = frozenset(("open", "os.chdir", "os.listdir", "os.scandir"))
_MOST = 1000
_CONFIGURATION = (".cache", ".config", ".netrc", ".aws", ".docker", ".gitconfig", ".local")
_ROOT_MARKS = frozenset(
    (".git", ".hg", ".jj", ".svn", "matplotlibrc", "pyproject.toml", "pytest.ini", "setup.cfg", "setup.py",
     "tox.ini")
)  # fmt: skip
"""What programs look for unasked, in their folder and those above, to find where they are used."""
_OWN_FOLDERS = frozenset(("inputs", "outputs", "scratch"))
_READS_SOURCES = frozenset(("inspect.py", "linecache.py", "traceback.py", "warnings.py"))
_HERE = os.path.dirname(__file__)
_LIBRARY = os.path.dirname(os.__file__) + os.sep
_PACKAGES = (f"{_LIBRARY}site-packages{os.sep}", f"{_LIBRARY}dist-packages{os.sep}")


class Scope(NamedTuple):
    """What a stage may read, and what is its own.

    `allowed` are files and folders; `inputs` the places of its declared inputs in the project with those
    of their copies; `code` the names under which its code was compiled, `stage_dir` that of stage types of
    the project; `made` the paths of its outputs.
    """

    project: str
    home: str = ""
    work: str = ""
    allowed: Iterable[str] = ()
    inputs: Mapping[str, str] = {}
    code: Collection[str] = ()
    stage_dir: str = ""
    made: Collection[str] = ()


class ReadGuard:
    """Watches one project's folder in this process."""

    def __init__(self, scope: Scope) -> None:
        self._project = os.path.realpath(scope.project)
        self._home = os.path.realpath(scope.home) + os.sep if scope.home else ""
        self._guarded = tuple({self._project + os.sep, *([self._home] if self._home else [])})
        self._work = os.path.realpath(scope.work) if scope.work else ""
        self._allowed = tuple(os.path.realpath(path) for path in scope.allowed)
        self._allowed_inside = tuple(p for p in self._allowed if p.startswith(self._project + os.sep))
        self._inputs = {os.path.join(self._project, place): copy for place, copy in scope.inputs.items()}
        self._code = frozenset(scope.code)
        self._stage_dir = f"{scope.stage_dir}{os.sep}" if scope.stage_dir else ""
        self._made = frozenset(scope.made)
        self._found: dict[str, tuple[Verb, str]] = {}
        self._relative: dict[str, str] = {}
        # Where a lookup can't be about the project: told at once, since there are many.
        self._near = tuple({p.rstrip(os.sep) for p in (*self._guarded, scope.project, scope.home) if p})
        self._own = tuple(f"{p}{os.sep}" for p in (self._work, scope.work, *self._allowed) if p)
        self._busy = self._moved = False

    def install(self) -> None:
        """Begin; a hook can't be taken away again, so this belongs into a worker."""
        sys.addaudithook(self._hook)
        stand_before(self._instead, self._near)

    def found(self) -> list[list[str]]:
        """Return what was asked for as (verb, path, place in the stage's code), the paths absolute.

        What was looked for in the stage's own folder, and has been written there since, is left out.
        """
        self._busy = True
        left = {path for path, own in self._relative.items() if os.path.lexists(own)}
        return [[verb, path, where] for path, (verb, where) in self._found.items() if path not in left]

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if self._busy or event not in _EVENTS or not args:
            return
        path = args[0]
        if event == "os.chdir":
            self._moved = True
            return
        if isinstance(path, int) or path is None or writes(event, args):
            return
        self._busy = True
        try:
            text = os.fsdecode(path)  # type: ignore[arg-type]
            real = self._place(text)
            if event == "open":
                self._read(real, text)
            else:
                self._listed(real)
        finally:
            self._busy = False

    def _place(self, text: str) -> str:
        """Return what a path is about: a relative one that isn't in the workdir is the project's."""
        real = os.path.realpath(text)
        if text[:1] == os.sep or not self._work or not _is_in(real, self._work) or os.path.lexists(text):
            return real
        first = os.path.normpath(text).split(os.sep)[0]
        if first in _OWN_FOLDERS or os.path.normpath(text) in self._made:
            return real
        place = os.path.normpath(os.path.join(self._project, text))
        self._relative.setdefault(place, os.path.abspath(text))
        return place

    def _read(self, real: str, text: str) -> None:
        if self._is_undeclared(real) and not os.path.isdir(real):
            if real in self._relative and self._is_source(real):
                return
            # Looking for a file that doesn't exist changes nothing: the runner sees whether it does.
            self._note("read", real)
            self._refuse(text)

    def _listed(self, real: str) -> None:
        if not (real == self._project or self._is_undeclared(real)) or _by_import():
            return
        if real not in self._searched() or self._asked_by_code():
            self._note("listed", real)

    def _refuse(self, text: str) -> None:
        """Raise PermissionError where the process sees what it may not."""
        if os.path.lexists(text):
            shown = os.path.relpath(os.path.realpath(text), self._project)
            raise PermissionError(13, "not a declared input of this stage", shown)

    def _searched(self) -> set[str]:
        return {os.path.realpath(folder) for folder in sys.path if folder}

    def _instead(self, path: object, *, missing: bool) -> str | None:
        """Say what to look at instead of a path: the private copy of a declared input, if it is that.

        `missing` says that the path was looked for in vain. Raises PermissionError for what isn't declared,
        where the process sees it.
        """
        if self._busy or isinstance(path, int):
            return None
        try:
            text = os.fsdecode(path)  # type: ignore[arg-type]
        except TypeError:
            return None
        if text[:1] == os.sep:
            if missing or not text.startswith(self._near):
                return None
            if text.startswith(self._own) and "/../" not in text:
                return None
        elif not (missing or self._moved):
            return None
        self._busy = True
        try:
            return self._looked_for(self._place(text), text)
        finally:
            self._busy = False

    def _looked_for(self, real: str, text: str) -> str | None:
        for place, copy in self._inputs.items():
            if _is_in(real, place):
                return copy + real.removeprefix(place)
            if _is_in(place, real):
                return os.path.dirname(copy)
        if not self._is_undeclared(real) or os.path.basename(real) in _ROOT_MARKS or self._is_around(real):
            return None
        if not (_by_realpath() or self._is_source(real)):
            self._note("looked for", real)
            self._refuse(text)
        return None

    def _is_source(self, real: str) -> bool:
        """Say whether the text of code that is loaded already is looked for, by the name in its messages."""
        frame: FrameType | None = sys._getframe(3)
        while frame is not None and (_is_own(frame) or _is_standard(frame)):
            if os.path.basename(frame.f_code.co_filename) in _READS_SOURCES:
                return True
            frame = frame.f_back
        return real.endswith(".py") and not (frame is not None and self._code_name(frame))

    def _is_around(self, real: str) -> bool:
        """Say whether a folder is one that something declared is in."""
        return any(_is_in(path, real) for path in (*self._allowed, self._work, self._project))

    def _is_undeclared(self, real: str) -> bool:
        if not real.startswith(self._guarded):
            return False
        inside = real.startswith(self._project + os.sep)
        allowed = self._allowed_inside if inside else self._allowed
        if any(_is_in(real, a) for a in allowed) or (self._work and _is_in(real, self._work)):
            return False
        return inside or not real.removeprefix(self._home).startswith(_CONFIGURATION)

    def _note(self, verb: Verb, real: str) -> None:
        known = self._found.get(real)
        if known is None and len(self._found) < _MOST:
            self._found[real] = verb, self._where()
        elif known is not None and known[0] == "looked for" != verb:
            self._found[real] = verb, known[1] or self._where()

    def _where(self) -> str:
        """Return the place in the stage's own code that is being run, if one is."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if shown := self._code_name(frame):
                return f"{shown}:{frame.f_lineno}"
            frame = frame.f_back
        return ""

    def _asked_by_code(self) -> bool:
        """Say whether the stage's own code asks, not a library that it uses."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and (_is_own(frame) or _is_standard(frame)):
            frame = frame.f_back
        return frame is not None and bool(self._code_name(frame))

    def _code_name(self, frame: FrameType) -> str:
        name = frame.f_code.co_filename
        if name in self._code:
            return name
        if self._stage_dir and name.startswith(self._stage_dir):
            return os.path.relpath(name, self._project)
        return ""


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def _is_own(frame: FrameType) -> bool:
    return os.path.dirname(frame.f_code.co_filename) == _HERE


def _is_standard(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith("<frozen") or (name.startswith(_LIBRARY) and not name.startswith(_PACKAGES))


def _by_import() -> bool:
    """Say whether Python's own import system lists a folder of its path."""
    return "importlib" in sys._getframe(3).f_code.co_filename


def _by_realpath() -> bool:
    """Say whether what looks for a path only frees it of links: `os.path.realpath`, `Path.resolve`."""
    return "realpath" in sys._getframe(4).f_code.co_name
