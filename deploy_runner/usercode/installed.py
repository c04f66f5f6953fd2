"""Modules that are not the project's: which distribution they belong to, or which files they are.

What was installed from an index is told apart by name and version. Everything else on the
interpreter's path (editable installs, `.pth` folders, PYTHONPATH) is told apart by content: the whole
folder of the package that is imported, under names that begin with the package's own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

__all__ = ["Origin", "distributions", "locate", "normal", "origin_of", "search_path", "version_in"]

_INFO = (".dist-info", ".egg-info")


class Origin(NamedTuple):
    """Where a module comes from: distributions by name, or files by name relative to the path."""

    distributions: tuple[str, ...]
    files: dict[str, Path]


def search_path() -> list[str]:
    """Return the interpreter's path without the folder that it was started in, or its script's.

    A file there must not stand for a module of the same name, unless PYTHONPATH names the folder.
    """
    path = list(sys.path)
    main = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    started = {"", os.getcwd(), os.path.dirname(os.path.realpath(sys.argv[0])), os.path.dirname(main)}
    asked = [] if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "").split(os.pathsep)
    wanted = {os.path.abspath(folder) for folder in asked if folder}
    if path and path[0] in started and not sys.flags.safe_path and path[0] not in wanted:
        del path[0]
    return [folder for folder in path if folder]


def normal(name: str) -> str:
    """Return a distribution's name in the form in which two spellings of it are equal."""
    return name.lower().replace("-", "_").replace(".", "_")


def distributions(folder: str) -> dict[str, str]:
    """Return normal name → metadata folder of what is installed in a folder of the path.

    Only names are read: two milliseconds, where importlib.metadata takes 40.
    """
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return {}
    infos = (name for name in names if name.endswith(_INFO))
    # An egg-info without a version lies beside a package's own source: that is no installed one.
    return {normal(n.rpartition(".")[0].partition("-")[0]): f"{folder}/{n}" for n in infos if "-" in n[:-9]}


def version_in(metadata: str) -> str:
    """Return the version of an installed distribution, and of a local one what tells its content too.

    Two builds of one's own package mostly carry one version: PEP 610's direct_url.json says where it
    came from; its commit or its archive's hash counts, else the hashes in its RECORD.
    """
    version = os.path.basename(metadata).rpartition(".")[0].partition("-")[2].partition("-py")[0]
    try:
        with open(f"{metadata}/direct_url.json", encoding="utf-8") as file:
            source = json.load(file)
        found = source.get("vcs_info", {}).get("commit_id") or source.get("archive_info", {}).get("hash")
        return f"{version} ({found or _record(metadata)})"
    except (OSError, ValueError, AttributeError):
        return version


def _record(metadata: str) -> str:
    own = os.path.basename(metadata)
    with open(f"{metadata}/RECORD", encoding="utf-8") as file:
        lines = [line for line in file if not line.startswith((own, "..")) and "__pycache__" not in line]
    return sha256("".join(lines).encode()).hexdigest()[:16]


def origin_of(dotted: Sequence[str]) -> Origin | None:
    """Return where an absolute import comes from; None for the standard library and missing modules."""
    if dotted[0] in sys.stdlib_module_names or dotted[0] == "deploy_runner":
        return None
    found = locate(dotted[0])
    if found is None:
        return None
    place, is_package = found
    owners = _owners(dotted[0], str(place.parent))
    if owners:
        return Origin(owners, {})
    return Origin((), _content(place, is_package, dotted))


def locate(name: str) -> tuple[Path, bool] | None:
    """Return a top-level module's file, or its package's folder and True; nothing is imported."""
    import importlib.machinery

    standard = (importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter)
    spec = importlib.machinery.PathFinder.find_spec(name, search_path())
    for finder in sys.meta_path:  # Editable installs bring finders of their own.
        module = getattr(finder, "__module__", "") or type(finder).__module__
        if spec is None and finder not in standard and module.startswith("__editable__"):
            spec = finder.find_spec(name, None)
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        folders = [f for f in spec.submodule_search_locations if os.path.isdir(f)]
        return (Path(folders[0]), True) if folders else None
    return (Path(spec.origin), False) if spec.origin and os.path.isfile(spec.origin) else None


def _owners(name: str, folder: str) -> tuple[str, ...]:
    """Return the distributions of a folder that a top-level module of it belongs to."""
    there = distributions(folder)
    if normal(name) in there:
        return (normal(name),)
    owned = _by_module(folder, os.stat(folder).st_mtime_ns).get(name, ()) if there else ()
    return tuple(sorted(owner for owner in owned if owner in there))


@cache
def _by_module(folder: str, changed_ns: int) -> dict[str, set[str]]:
    from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder

    found: dict[str, set[str]] = {}
    context = DistributionFinder.Context(path=[folder])
    known: Iterator[Distribution] = iter(MetadataPathFinder.find_distributions(context))
    for distribution in known:
        owner = normal(distribution.metadata["Name"] or "")
        for file in distribution.files or ():
            found.setdefault(file.parts[0].partition(".")[0], set()).add(owner)
    return found


def _content(place: Path, is_package: bool, dotted: Sequence[str]) -> dict[str, Path]:
    """Return the module's file, or all of its package's: it may read data, and import by name."""
    if not is_package:
        return {place.name: place}
    prefix = dotted[0]
    for part in dotted[1:]:
        if (place / "__init__.py").is_file():
            break
        if (place / f"{part}.py").is_file():
            return {f"{prefix}/{part}.py": place / f"{part}.py"}
        place, prefix = place / part, f"{prefix}/{part}"
    if not (place / "__init__.py").is_file():
        return {}
    return {f"{prefix}/{path.relative_to(place).as_posix()}": path for path in _files(place)}


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
        for name in sorted(names):
            path = Path(where, name)
            if not name.startswith(".") and not name.endswith(".pyc") and path.is_file():
                yield path
