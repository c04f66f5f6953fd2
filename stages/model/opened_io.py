"""Open the output of model.io in a stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, first_line

if TYPE_CHECKING:
    from ...server.raw import rawio

__all__ = ["open_io", "read_spec"]


def read_spec(folder: Path) -> dict[str, Any]:
    """Return what the output of model.io declares. Raises StageError."""
    from ...server.raw import spec

    try:
        return spec.read(folder)
    except (OSError, ValueError):
        raise StageError(f"`io` is no output of model.io: it has no {spec.FILE}") from None


def open_io(folder: Path) -> rawio.RawIo:
    """Open the output of model.io. Raises StageError."""
    from ...server.raw import rawio

    declared = read_spec(folder)
    try:
        return rawio.RawIo(folder, declared)
    except Exception as error:  # Its code is the user's.
        raise StageError(f"the io can't be opened: {type(error).__name__}: {first_line(error)}") from error
