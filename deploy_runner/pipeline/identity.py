"""Which pipeline it is that a run belongs to: its file and its overlays, as places beside the store.

`--set` doesn't count: it is another value in the same pipeline, as an edit of the YAML would be, and
`diff` and `explain` are there to compare the two. Nor does the pipeline's `name:`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["DEFAULT_OVERLAY", "Files", "beside", "describe", "identity", "is_there"]

DEFAULT_OVERLAY = Path("configs/dry-run.yaml")

Files = tuple[str, ...]
"""The pipeline's file, then its overlays in order, each as a path relative to the store."""


def identity(pipeline: Path, overlays: Sequence[Path], home: Path) -> Files:
    """Return what tells a pipeline from every other one of its store.

    The default overlay is the same named or not. Paths are relative to the store, so that a project
    that is moved with its store keeps its runs, and real, so that it doesn't matter how one got there.
    """
    store = os.path.realpath(home)
    chosen = [_place(overlay) for overlay in overlays]
    if chosen == [_place(pipeline.parent / DEFAULT_OVERLAY)]:
        chosen = []
    return tuple(os.path.relpath(place, store) for place in (_place(pipeline), *chosen))


def beside(files: Files, home: Path, other: Path) -> Files:
    """Return what identifies the same files in another store."""
    store = os.path.realpath(other)
    return tuple(os.path.relpath(place, store) for place in _absolute(files, home))


def _place(path: Path) -> str:
    """Return the real path; a link that leads out of its folder is a file of the folder it is in.

    What a pipeline reads lies beside the name that it was given.
    """
    folder, real = os.path.realpath(path.parent), os.path.realpath(path)
    return real if os.path.dirname(real) == folder else os.path.join(folder, path.name)


def describe(files: Files, home: Path) -> str:
    """Return the pipeline in words, its paths as they are from here."""
    shown = [os.path.relpath(place) for place in _absolute(files, home)]
    return shown[0] + (f" with {', '.join(shown[1:])}" if shown[1:] else "")


def is_there(files: Files, home: Path) -> bool:
    """Say whether every file of the pipeline still exists."""
    return all(os.path.exists(place) for place in _absolute(files, home))


def _absolute(files: Files, home: Path) -> list[str]:
    return [os.path.normpath(os.path.join(os.path.realpath(home), file)) for file in files]
