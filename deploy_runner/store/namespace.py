"""Which store a run writes: a pull request has a namespace of its own, and only reads the protected one.

A pull request's code is nobody's yet. What it makes goes to `pull-requests/NUMBER` inside the store,
a store of its own with a key of its own, that no other run reads; what the protected one has, it uses.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import UsageError
from .layout import FOLDERS

__all__ = [
    "HOME_VARIABLE",
    "beside_others",
    "configured_home",
    "is_pull_request",
    "own_home",
    "protected_home",
    "store_homes",
    "stores_own",
]

HOME_VARIABLE = "DEPLOY_RUNNER_HOME"
_FOLDER = "pull-requests"
_OWN = frozenset(
    {*FOLDERS, "counter", "counter.lock", "gc.lock", "secret", "stat.sqlite", "stat.sqlite-shm",
     "stat.sqlite-wal"}
)  # fmt: skip


def configured_home(folder: Path, environ: Mapping[str, str]) -> Path:
    """Return `DEPLOY_RUNNER_HOME`, or `.deploy-runner` in the pipeline's folder.

    A `~` in it is the home folder, for not every place where a variable is set has a shell; a relative path
    is one from the current folder. Raises UsageError for the home folder of nobody.
    """
    configured = environ.get(HOME_VARIABLE, "").strip()
    if not configured:
        return folder / ".deploy-runner"
    if configured.startswith("~"):
        return _below_home(configured, environ)
    return Path(configured).absolute()


def _below_home(path: str, environ: Mapping[str, str]) -> Path:
    own = path == "~" or path.startswith("~/")
    expanded = environ.get("HOME", "~") + path[1:] if own else os.path.expanduser(path)
    if not os.path.isabs(expanded):
        raise UsageError(
            f"{HOME_VARIABLE} is {path}, and this machine knows no such home folder",
            fix=f"set {HOME_VARIABLE} to an absolute path",
        )
    return Path(expanded)


def store_homes(folder: Path, environ: Mapping[str, str]) -> list[Path]:
    """Return every folder in which files of a store may lie, whoever runs the pipeline."""
    home = configured_home(folder, environ)
    protected = protected_home(own_home(home, environ), environ)
    left = folder / ".deploy-runner"
    homes = [home, *([protected] if protected else []), *([left] if left.is_dir() else [])]
    return list(dict.fromkeys(homes))


def stores_own(path: str, home: str, root: str) -> str:
    """Say how a path is of the store in `home`: "inside", "around" it, or nothing.

    All links are followed. Where the project itself lies in `home` (`DEPLOY_RUNNER_HOME=.`), only what a
    store writes there is its own.
    """
    real, base = os.path.realpath(path), os.path.realpath(home)
    if _below(base, real):
        return "around"
    if not _below(real, base):
        return ""
    if not _below(os.path.realpath(root), base):
        return "inside"
    return "inside" if os.path.relpath(real, base).split(os.sep)[0] in _OWN else ""


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def own_home(home: Path, environ: Mapping[str, str]) -> Path:
    """Return the folder of the store that a run in this environment may write."""
    if not is_pull_request(environ):
        return home
    number = re.fullmatch(r"refs/pull/(\d+)/\w+", environ.get("GITHUB_REF", ""))
    return home / _FOLDER / (number[1] if number else "any")


def beside_others(own: Path) -> Path:
    """Return the folder of all pull requests' stores, where `own` is one of them, else `own` itself."""
    return own.parent if own.parent.name == _FOLDER else own


def protected_home(own: Path, environ: Mapping[str, str]) -> Path | None:
    """Return the folder of the store that such a run reads besides, if there is one.

    `DEPLOY_RUNNER_PROTECTED_HOME` names one; on GitHub, without it, that follows from the event.
    """
    if configured := environ.get("DEPLOY_RUNNER_PROTECTED_HOME"):
        return Path(configured).absolute()
    if is_pull_request(environ) and own.parent.name == _FOLDER:
        return own.parent.parent
    return None


def is_pull_request(environ: Mapping[str, str]) -> bool:
    """Say whether this run is for a pull request on GitHub."""
    return environ.get("GITHUB_EVENT_NAME", "").startswith("pull_request")
