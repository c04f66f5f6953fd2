"""What a malicious file is, and where it is put."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Kind", "Place", "Sample", "write"]

Kind = str
"""Who is given the file: checkpoint, onnx, arrays, archive, yaml, overlay."""


class Place(NamedTuple):
    """Where a sample is written, what it must not touch, what it must not read."""

    folder: Path
    canary: Path
    secret: Path


class Sample(NamedTuple):
    """One malicious file."""

    name: str
    kind: Kind
    make: Callable[[Place], Path]


def write(place: Place, name: str, data: bytes) -> Path:
    """Write a file of a sample."""
    path = place.folder / name
    path.write_bytes(data)
    return path
