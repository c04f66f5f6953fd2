"""Which store a run writes: a pull request has a namespace of its own, and only reads the protected one.

A pull request's code is nobody's yet. What it makes goes to `pull-requests/NUMBER` inside the store,
a store of its own with a key of its own, that no other run reads; what the protected one has, it uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["own_home", "protected_home"]

_FOLDER = "pull-requests"


def own_home(home: Path, environ: Mapping[str, str]) -> Path:
    """Return the folder of the store that a run in this environment may write."""
    if not _is_pull_request(environ):
        return home
    number = re.fullmatch(r"refs/pull/(\d+)/\w+", environ.get("GITHUB_REF", ""))
    return home / _FOLDER / (number[1] if number else "any")


def protected_home(own: Path, environ: Mapping[str, str]) -> Path | None:
    """Return the folder of the store that such a run reads besides, if there is one.

    On GitHub that follows from the event; anywhere `DEPLOY_RUNNER_PROTECTED_HOME` names one.
    """
    if _is_pull_request(environ) and own.parent.name == _FOLDER:
        return own.parent.parent
    configured = environ.get("DEPLOY_RUNNER_PROTECTED_HOME")
    return Path(configured) if configured else None


def _is_pull_request(environ: Mapping[str, str]) -> bool:
    return environ.get("GITHUB_EVENT_NAME", "").startswith("pull_request")
