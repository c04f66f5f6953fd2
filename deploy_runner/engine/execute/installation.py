"""Which folders the interpreter and what is installed for it need, also where a project lies among them."""

from __future__ import annotations

import importlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache

from ...usercode.installed import distributions

__all__ = ["SYSTEM", "hidden_among", "inside", "interpreter_paths", "real", "without"]

SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc", "/proc", "/sys", "/opt")
_OF_A_PREFIX = ("bin", "include", "lib", "lib64", "share", "pyvenv.cfg")
"""What an environment consists of: it may have been made in a project's own folder."""


@cache
def interpreter_paths() -> tuple[str, ...]:
    """Return the folders of the interpreter, its libraries and installed packages."""
    kept: list[str] = []
    for path in _every_path():
        if not path.startswith(tuple(f"{known}/" for known in (*kept, *SYSTEM))):
            kept.append(path)
    return tuple(kept)


@cache
def _every_path() -> tuple[str, ...]:
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    found |= set(site.getsitepackages()) | {os.path.dirname(os.path.realpath(sys.executable))}
    found |= {os.path.dirname(p) for p in _engine_paths()}
    found |= {folder for folder in sys.path if _holds_installed(folder)}
    return tuple(sorted(p for p in found if p and p != "/" and os.path.exists(p)))


@cache
def real(path: str) -> str:
    """Return a place without links; those of the system and of Python are found before a worker runs."""
    return os.path.realpath(path)


def _holds_installed(folder: str) -> bool:
    """Say whether packages were installed into a folder of the path; others are read file by file."""
    return any(path.endswith(".dist-info") for path in distributions(folder).values())


def _engine_paths() -> Iterator[str]:
    for name in ("deploy_runner", "deploy_runner.stages"):
        yield str(importlib.import_module(name).__file__)


def hidden_among(paths: Iterable[str], hide: Iterable[str]) -> list[str]:
    """Return the real places of `hide` that lie in one of the paths, the outermost alone."""
    places = sorted({os.path.realpath(path) for path in hide} - set(SYSTEM))
    known = tuple(f"{real(path)}/" for path in paths)
    found: list[str] = []
    for place in places:
        if f"{place}/".startswith(known) and not place.startswith(tuple(f"{other}/" for other in found)):
            found.append(place)
    return found


def inside(hidden: Sequence[str]) -> list[str]:
    """Return what of the interpreter and of installed packages lies inside of hidden folders."""
    found: list[str] = []
    for path in map(real, _every_path()):
        if path in hidden:
            found += _parts(path)
        elif path.startswith(tuple(f"{place}/" for place in hidden)):
            found.append(path)
    return found


def _parts(folder: str) -> list[str]:
    """Return what belongs to an environment, and to packages, that were installed into this very folder."""
    names = set(_OF_A_PREFIX)
    for metadata in distributions(folder).values():
        with suppress(OSError), open(f"{metadata}/RECORD", encoding="utf-8") as rows:
            names |= {row.partition(",")[0].partition("/")[0].strip('"') for row in rows}
    return sorted(f"{folder}/{name}" for name in names - {".", ".."} if os.path.exists(f"{folder}/{name}"))


def without(path: str, hidden: Sequence[str]) -> Iterator[str]:
    """Yield a path, or where something hidden lies in it, everything else in it."""
    if path in hidden:
        return
    if not any(place.startswith(f"{path}/") for place in hidden):
        yield path
        return
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            if not entry.is_symlink():
                yield from without(entry.path, hidden)
