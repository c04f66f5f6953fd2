"""All pipelines of a store, each by its last run."""

from __future__ import annotations

from typing import NamedTuple

from .library import Run
from .site import Site

__all__ = ["Known", "pipelines_of"]

_OUTCOMES = 12


class Known(NamedTuple):
    """A pipeline that was run here. `outcomes` are its last runs, the oldest first."""

    id: str
    name: str
    place: str
    files: tuple[str, ...]
    exists: bool
    runs: int
    last: Run
    outcomes: list[Run]


def pipelines_of(site: Site, runs: list[Run]) -> list[Known]:
    """Return the pipelines of these runs (the newest first), the one that ran last first."""
    of: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.files:
            of.setdefault(run.files, []).append(run)
    return [
        Known(
            found[0].pipeline, found[0].name, site.described(files), files, site.exists(files), len(found),
            found[0], found[_OUTCOMES - 1 :: -1] if len(found) >= _OUTCOMES else found[::-1],
        )
        for files, found in of.items()
    ]  # fmt: skip
