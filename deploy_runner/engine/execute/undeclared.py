"""Judge what a stage read, listed or looked for: the runner sees the whole project, the stage does not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ...types import PathSource, StageNode

__all__ = ["Undeclared", "undeclared", "undeclared_module", "unseen_file"]

_MOST_NAMED = 8
_STORE = ".deploy-runner/"
_PLAIN = re.compile(r"[\w/][\w/.+-]*")
_WORD = re.compile(r"[^\s:;,'\"`()]+")
_MISSING = re.compile(
    r"no such file|not found|nonexistent|does ?n[o']t exist|(can't|cannot|couldn't) (open|find)"
)


class Undeclared(NamedTuple):
    """What the key of a stage doesn't know of: what happened to which path of the project, how to fix it.

    `new` says that the path can be declared as a further input.
    """

    path: str
    message: str
    fix: str
    is_read: bool
    new: bool = False

    def explains(self, error: Mapping[str, str]) -> bool:
        """Say whether an error is about this path, which the stage didn't see."""
        said = error["message"]
        return said.startswith(("FileNotFoundError", "PermissionError")) and f"{self.path}'" in said


def undeclared(rows: Iterable[Sequence[str]], node: StageNode, root: str) -> list[Undeclared]:
    """Return what of the rows of `ReadGuard.found` the stage depends on and doesn't declare; reads first.

    What doesn't exist is none of it: a stage gets the same answer once it exists.
    """
    real = os.path.realpath(root)
    found = [one for row in rows if (one := _judged(*row, node=node, root=real)) is not None]
    paths = [one.path for one in found if one.new]
    together = _together([p for p in paths if not any(p.startswith(f"{other}/") for other in paths)])
    if len(together) > 1:
        fix = _declare(dict(list(together.items())[:_MOST_NAMED]), node)
        found = [one._replace(fix=fix) if one.new else one for one in found]
    return sorted(found, key=lambda one: not one.is_read)


def _together(paths: Iterable[str]) -> dict[str, str]:
    """Return a name for each path."""
    named: dict[str, str] = {}
    for path in paths:
        name = _name(path)
        while named.setdefault(name, path) != path:
            name += "_"
    return named


def _name(path: str) -> str:
    name = re.sub(r"\W", "_", os.path.splitext(os.path.basename(path))[0])
    return name if name[:1].isalpha() else f"file_{name.strip('_')}"


def _declare(inputs: Mapping[str, str], node: StageNode) -> str:
    """Return the line to add, in which a path that YAML would read otherwise is quoted."""
    rows = (f"{n}: {p if _PLAIN.fullmatch(p) else json.dumps(p)}" for n, p in inputs.items())
    return f"add `inputs: {{{', '.join(rows)}}}` {_place(node)}"


def _place(node: StageNode) -> str:
    return f"to {node.base} at {node.mark.file}:{node.mark.line}"


def _judged(verb: str, path: str, where: str, *, node: StageNode, root: str) -> Undeclared | None:
    if not (os.path.isfile(path) if verb == "read" else os.path.lexists(path)):
        return None
    shown = os.path.relpath(path, root)
    said = f"it {verb} {'the project folder' if path == root else shown}{f' ({where})' if where else ''}"
    is_read = verb == "read"
    if name := _input_with(shown, node):
        said = f"{said} in the project, though it gets a copy of it"
        return Undeclared(shown, said, f"use the path that it gets as the input `{name}`", is_read)
    if verb == "listed" and not _has_more(path, node):
        return None
    if f"{shown}/".startswith(_STORE):
        return Undeclared(
            shown, said, "refer to what another stage makes as ${{ stages.NAME.outputs.NAME }}", is_read
        )
    said = f"{said}, which is not declared"
    if f"{root}/".startswith(f"{path}/"):
        return Undeclared(shown, said, f"add the files that it needs as `inputs` {_place(node)}", is_read)
    if os.path.basename(path).startswith(".env"):
        return Undeclared(shown, said, f"add the variables that it needs under `env` {_place(node)}", is_read)
    if path.endswith(".py") and path.startswith(f"{node.stage_dir}/"):
        return Undeclared(shown, said, "import it by an `import` statement, which declares it", is_read)
    return Undeclared(shown, said, _declare({_name(shown): shown}, node), is_read, new=True)


def _input_with(shown: str, node: StageNode) -> str:
    """Return the name of the input that a path in the project is, or is in, if there is one."""
    for name, source in node.inputs.items():
        if isinstance(source, PathSource) and f"{shown}/".startswith(f"{source.path.rstrip('/')}/"):
            return name
    return ""


def unseen_file(line: str, node: StageNode, root: str, own: str) -> str:
    """Return what to do about a file of the project that a line of a command's output misses, if it does.

    `own` is the action's folder.
    """
    project = os.path.realpath(root)
    misses = _MISSING.search(line.lower()) is not None
    for word in _WORD.findall(line):
        if not (word.startswith("/") or misses):
            continue
        path = os.path.realpath(os.path.join(project, word))
        shown = path.removeprefix(f"{project}/")
        seen = path.startswith(f"{own}/") or shown.startswith(("/", _STORE))
        if not seen and os.path.isfile(path):
            name = _input_with(shown, node)
            return (
                f"use $INPUT_{re.sub(r'[^0-9A-Za-z]', '_', name).upper()}"
                if name
                else f"declare {shown} as an input"
            )
    return ""


def _has_more(folder: str, node: StageNode) -> bool:
    """Say whether a folder has more in it than what the stage declares."""
    declared = [os.path.realpath(file.path) for file in (*node.code, *node.implementation)]
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    for name in names:
        path = os.path.join(os.path.realpath(folder), name)
        known = any(place == path or place.startswith(f"{path}/") for place in declared)
        if not known and not name.startswith(".") and name != "__pycache__":
            return True
    return False


def undeclared_module(error: Mapping[str, str], node: StageNode, root: str) -> tuple[str, str] | None:
    """Return what to say of a missing module that is a file or a folder of the project, else None.

    What the extra of a stage type brings is none, whatever is named like it.
    """
    top = error.get("module", "").partition(".")[0]
    if not top.isidentifier() or "deploy-runner[" in error["fix"]:
        return None
    entry = next((os.path.dirname(f.path) for f in node.code), "")
    for folder in _folders(node, root):
        for path in (f"{folder}/{top}.py", f"{folder}/{top}"):
            if os.path.isfile(path) or _is_package(path):
                shown = os.path.relpath(path, root)
                said = f"{error['message'].partition(', is not installed')[0]}, is {shown}"
                return f"{said}, which this stage doesn't declare", _import_fix(
                    folder, top, entry, node, root
                )
    return None


def _folders(node: StageNode, root: str) -> Iterator[str]:
    inside = [
        os.path.dirname(f.path) for f in (*node.code, *node.implementation) if f.path.startswith(f"{root}/")
    ]
    yield from dict.fromkeys([*inside, root, f"{root}/src"])


def _is_package(folder: str) -> bool:
    try:
        return any(name.endswith(".py") for name in os.listdir(folder))
    except OSError:
        return False


def _import_fix(folder: str, top: str, entry: str, node: StageNode, root: str) -> str:
    if folder == node.stage_dir:
        return f"import it by the statement `from . import {top}`, which declares it"
    if folder in (entry, root):
        return f"import it by the statement `import {top}`, which declares it"
    return "import it by a statement from the project's folder or that of the file that `with` names"
