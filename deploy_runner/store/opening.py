"""Open the store in a folder: what a shared cache needs is loaded only where there is one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..types import RemoteSpec
from .cas import Store

__all__ = ["open_store"]


def open_store(
    home: Path,
    *,
    protected: Path | None = None,
    remote: RemoteSpec | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Store:
    """Return the store in a folder, with the shared cache behind it if there is one."""
    if remote is None:
        return Store(home, protected=protected)
    from .shared import SharedStore

    return SharedStore(home, remote, protected=protected, environ=environ)
